from __future__ import annotations

import pytest

from normlens.report.rules.stale_statistics import stale_statistics
from support.over_time import measurements


def find(write, gap, *, floor=0.05, share=0.0, noise=0.1, losses=(1.0, 1.0), error=0.01):
    both = [
        *measurements("batch_noise", "norm", running_mean_gap=gap, running_log_variance_gap=[0.0] * len(gap),
                      running_gap_floor=[floor] * len(gap), initial_share=[share] * len(gap),
                      statistic_error=[noise] * len(gap)),
        *measurements("batch_noise", loss_train=[losses[0]], loss_eval=[losses[1]], error=error,
                      loss_gap=[losses[1] - losses[0]], steps=[10 * (len(gap) - 1)]),
    ]  # fmt: skip
    return stale_statistics(write(both))


def test_a_gap_far_above_its_floor_is_found_from_where_it_stays(write_measurements):
    (finding,) = find(write_measurements, [1.0, 0.1, 0.3, 0.4])
    assert (finding.severity, finding.layer, finding.step) == ("look", "norm", 20)
    assert finding.evidence["gap"] == 0.4


@pytest.mark.parametrize(("gap", "floor"), [([1.0, 0.2], 0.05), ([1.0, 0.4], 0.15)])
def test_a_small_gap_and_one_that_sampling_explains_are_none(write_measurements, gap, floor):
    assert find(write_measurements, gap, floor=floor) == []


@pytest.mark.parametrize(
    ("losses", "error", "severity"),
    [((1.0, 1.5), 0.01, "sick"), ((1.0, 1.5), 0.25, "look"), ((1.0, 1.05), 0.001, "look")],
)
def test_it_is_sick_where_eval_mode_loses_by_it(write_measurements, losses, error, severity):
    (finding,) = find(write_measurements, [0.4], losses=losses, error=error)
    assert finding.severity == severity
    assert ("in eval mode the loss is 1.5 instead of 1" in finding.message) == (severity == "sick")


@pytest.mark.parametrize(
    ("known", "cause"),
    [({"share": 0.97}, "97 % of them still being"), ({"noise": 0.7}, "batches being too small"), ({}, "moves faster")],
)
def test_the_cause_is_told_apart(write_measurements, known, cause):
    (finding,) = find(write_measurements, [0.4], **known)
    assert cause in finding.message


def test_the_worse_of_mean_and_variance_counts(write_measurements):
    both = measurements("batch_noise", "norm", running_mean_gap=[0.1], running_log_variance_gap=[0.9],
                        running_gap_floor=[0.05])  # fmt: skip
    (finding,) = stale_statistics(write_measurements(both))
    assert finding.evidence["gap"] == 0.9
