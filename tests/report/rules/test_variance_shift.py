from __future__ import annotations

import pytest

from normlens.report.rules.variance_shift import variance_shift
from support.over_time import over_time


def find(write, shift, used, dropouts=1.0, **more):
    both = {"shift": shift, "eval_to_running": used, "dropouts_before": [dropouts] * len(shift)}
    return variance_shift(over_time(write, "variance_shift", "norm", **both, **more))


def test_what_dropping_half_makes_is_found_and_compared_with_the_prediction(write_measurements):
    (finding,) = find(write_measurements, [1.0, 2.0], [1.0, 0.5], shift_predicted=[2.1, 2.1])
    assert (finding.severity, finding.layer, finding.step) == ("look", "norm", 10)
    assert finding.evidence["shift"] == 2
    assert finding.evidence["predicted"] == 2.1


@pytest.mark.parametrize(
    ("shift", "used", "dropouts"),
    [
        ([2.0, 2.0], [0.5, 0.5], 0.0),  # no dropout: the statistics are stale
        ([1.2, 1.2], [0.8, 0.8], 1.0),
        ([2.0, 2.0], [1.0, 1.0], 1.0),  # taken again in eval mode
        ([2.0], [0.5], 1.0),  # before training the running variance is its initial 1
    ],
)
def test_small_shifts_and_other_causes_are_none(write_measurements, shift, used, dropouts):
    assert find(write_measurements, shift, used, dropouts) == []
