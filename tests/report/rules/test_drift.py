from __future__ import annotations

import pytest

from normlens.report.rules.drift import drift
from support.over_time import measurements


def layer(name, ks, floor=0.05):
    return measurements("activation_drift", name, ks_previous=ks, ks_floor=[floor] * len(ks))


@pytest.mark.parametrize(
    ("ks", "floor"),
    [
        ((0.8, 0.5, 0.2, 0.1), 0.05),  # calms down
        ((0.8, 0.7, 0.5, 0.4), 0.05),  # calms down slowly
        ((0.1, 0.1, 0.2, 0.25), 0.05),  # small
        ((0.1, 0.1, 0.4, 0.1), 0.2),  # within what sampling explains
        ((0.1, 0.4), 0.05),  # no half to compare with
    ],
)
def test_activations_that_calm_down_are_no_finding(write_measurements, ks, floor):
    assert drift(write_measurements(layer("fc", ks, floor))) == []


def test_a_drift_that_sets_off_again_is_found_at_its_peak_in_the_layer_that_drifts_most(write_measurements):
    both = [*layer("a", (0.3, 0.2, 0.1, 0.4, 0.1)), *layer("b", (0.3, 0.2, 0.1, 0.7, 0.1))]
    (finding,) = drift(write_measurements(both))
    assert (finding.severity, finding.layer, finding.step) == ("look", "b", 30)
    assert finding.evidence["drift"] == 0.7
    assert "14 times their floor" in finding.message
    assert finding.message.endswith("so in 2 layers.")
