from __future__ import annotations

import math

import pytest

from normlens.report.rules.margin_shrinking import margin_shrinking
from support.over_time import over_time


def find(write, *margins):
    return margin_shrinking(over_time(write, "elimination", "relu", margin=margins))


@pytest.mark.parametrize(
    "margins",
    [
        (0.0, -0.5, -0.9),  # less than a standard deviation
        (0.0, -1.8, -1.2),  # on its way back
        (-2.5, -3.0, -4.0),  # lost before the training
        (1.5, 0.5, 0.4),  # far from the singularity still
        (0.0, -1.5),  # two points are no trend
        (0.0, -1.0, -math.inf),  # dead, which another rule says
    ],
)
def test_a_layer_that_keeps_its_distance_is_no_finding(write_measurements, margins):
    assert find(write_measurements, *margins) == []


def test_a_layer_on_its_way_is_found_where_half_was_lost_and_told_when_it_dies(write_measurements):
    (finding,) = find(write_measurements, 0.0, -0.4, -0.5, -1.5)
    assert (finding.severity, finding.layer, finding.step) == ("look", "relu", 20)
    assert finding.evidence["lost"] == pytest.approx(1.5)
    assert finding.message.endswith("at this pace it is dead in 30 steps.")  # 1.5 in 30 steps, and 1.5 are left


def test_below_what_a_probe_batch_can_see_it_is_all_but_dead(write_measurements):
    (finding,) = find(write_measurements, 0.0, -1.0, -3.5)
    assert finding.message.endswith("it is all but dead.")
