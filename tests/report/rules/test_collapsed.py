from __future__ import annotations

import math

import numpy as np
import pytest

from normlens.report.rules.collapsed import collapsed
from support.over_time import measurements, over_time


def test_less_than_two_directions_are_sick_from_where_they_stay_so(write_measurements):
    assert collapsed(over_time(write_measurements, "rank_collapse", "relu", effective_rank_centered=[1.2, 1.6])) == []
    run = over_time(write_measurements, "rank_collapse", "relu", effective_rank_centered=[1.2, 3.0, 1.4, 1.3])
    (finding,) = collapsed(run)
    assert (finding.severity, finding.layer, finding.step) == ("sick", "relu", 20)
    assert finding.evidence["directions"] == 1.3


@pytest.mark.parametrize(("last", "fires"), [(0.9, False), (1.1, True), (math.nan, True)])
def test_one_direction_is_enough_where_the_loss_has_fallen_below_half(write_measurements, last, fires):
    """Two classes need one direction, and a network that has learned to tell them apart has no more."""
    ranks = measurements("rank_collapse", "relu", effective_rank_centered=[3.0, 1.04])
    found = collapsed(write_measurements([*ranks, *measurements("training_curve", loss=[2.0, last])]))
    assert [finding.layer for finding in found] == ["relu"] * fires


@pytest.mark.parametrize(("copies", "fires"), [(3, False), (4, True), (8, True)])
def test_half_of_the_units_being_copies_is_sick(write_measurements, copies, fires):
    overlap = np.where(np.arange(8) < copies, 1.0, 0.5)
    found = collapsed(over_time(write_measurements, "elimination", "conv", overlap=[0.5 * overlap, overlap]))
    assert [(finding.severity, finding.step) for finding in found] == [("sick", 10)] * fires
    for finding in found:
        assert finding.evidence["copies"] == copies / 8
