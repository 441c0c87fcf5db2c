from __future__ import annotations

import pytest

from normlens.report.rules.norm_runaway import norm_runaway
from support.over_time import over_time


def find(write, norm, invariance=1e-6, **more):
    readings = {"norm": norm, "invariance": [invariance] * len(norm), "effective_rate": [0.1 / v**2 for v in norm]}
    return norm_runaway(over_time(write, "weight_dynamics", "conv", **readings, **more))


def test_a_doubled_norm_of_a_scale_invariant_weight_is_found_where_it_doubled(write_measurements):
    (finding,) = find(write_measurements, (1.0, 1.5, 2.5, 4.0))
    assert (finding.layer, finding.step, finding.severity) == ("conv", 20, "look")
    assert finding.evidence["growth"] == 4
    assert "fell from 0.1 to 0.00625" in finding.message  # a sixteenth


@pytest.mark.parametrize(
    ("norm", "invariance", "more"),
    [
        ((1.0, 1.9), 1e-6, {}),
        ((1.0, 3.0, 1.2), 1e-6, {}),
        ((1.0, 4.0), 0.1, {}),  # the loss depends on its length
        ((1.0, 4.0), 1e-6, {"angle_equilibrium": [None, 0.01]}),  # decay holds it
        ((4.0,), 1e-6, {}),
    ],
)
def test_weights_that_are_held_or_matter_by_their_length_are_no_finding(write_measurements, norm, invariance, more):
    assert find(write_measurements, norm, invariance, **more) == []
