from __future__ import annotations

import pytest

from normlens.report.rules.dead_channels import dead_channels
from normlens.run.reading import Measurement, Reading


def counts(write_measurements, history, channels=20.0, n=100):
    return write_measurements([
        Measurement(10 * i, "elimination", readings=(
            Reading("dead", float(dead), layer="relu", n=n), Reading("channels", channels, layer="relu")))
        for i, dead in enumerate(history)
    ])  # fmt: skip


@pytest.mark.parametrize(("dead", "severity"), [(1, "note"), (4, "note"), (5, "sick"), (20, "sick")])
def test_a_quarter_of_a_layer_is_sick_and_less_is_a_note(write_measurements, dead, severity):
    (finding,) = dead_channels(counts(write_measurements, [dead]))
    assert finding.severity == severity
    assert finding.evidence["fraction_dead"] == dead / 20
    assert finding.evidence["threshold"] <= finding.evidence["fraction_dead"]


def test_the_step_is_the_first_of_those_from_which_on_channels_were_dead(write_measurements):
    (finding,) = dead_channels(counts(write_measurements, [0, 3, 0, 1, 4]))
    assert (finding.step, finding.layer, finding.probe) == (30, "relu", "elimination")


def test_channels_that_came_back_to_life_are_no_finding(write_measurements):
    assert dead_channels(counts(write_measurements, [0, 3, 0])) == []


def test_the_rule_of_three_bounds_how_often_a_dead_channel_may_be_active(write_measurements):
    (finding,) = dead_channels(counts(write_measurements, [5], n=300))
    assert finding.evidence["active_at_most"] == pytest.approx(0.01)
    missed = (1 - 0.01) ** 300
    assert missed == pytest.approx(0.05, rel=0.03)  # that is, 95 % confidence


def test_what_is_sick_is_so_since_a_quarter_was_dead(write_measurements):
    (finding,) = dead_channels(counts(write_measurements, [1, 4, 5, 9]))
    assert finding.step == 20
