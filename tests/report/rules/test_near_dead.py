from __future__ import annotations

import pytest

from normlens.report.rules.near_dead import near_dead
from normlens.run.reading import Measurement, Reading


def counts(write_measurements, *history):
    return write_measurements([
        Measurement(step, "elimination", readings=tuple(
            Reading(name, float(value), layer="relu") for name, value in
            zip(("near_dead", "dead", "channels"), (*pair, 20), strict=True)))
        for step, pair in enumerate(history)
    ])  # fmt: skip


@pytest.mark.parametrize(("near", "dead", "fires"), [(1, 0, False), (2, 0, True), (4, 3, False), (5, 3, True)])
def test_a_tenth_of_the_layer_beside_the_dead_ones_is_worth_a_look(write_measurements, near, dead, fires):
    findings = near_dead(counts(write_measurements, (near, dead)))
    assert [finding.severity for finding in findings] == ["look"] * fires
    for finding in findings:
        assert finding.evidence["fraction_nearly_dead"] == pytest.approx((near - dead) / 20)


def test_the_step_is_the_start_of_the_last_stretch(write_measurements):
    (finding,) = near_dead(counts(write_measurements, (3, 0), (0, 0), (3, 0), (4, 0)))
    assert finding.step == 2
