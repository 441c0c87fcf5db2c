from __future__ import annotations

import math

import pytest

from normlens.report.rules.gradients_at_init import gradients_at_init
from normlens.run.reading import Measurement, Reading


def find(write, *energies, step=0):
    readings = tuple(Reading("energy", value, layer=f"layer{i}") for i, value in enumerate(energies))
    return gradients_at_init(write([Measurement(step, "gradient_flow", readings=readings)]))


@pytest.mark.parametrize(
    ("energies", "word", "factor"),
    [((1.0, 16.0, 256.0), "vanishes", 1 / 16), ((256.0, 16.0, 1.0), "explodes", 16), ((0.0, 0.0, 1.0), "vanishes", 0)],
)
def test_a_geometric_change_is_found_with_its_factor(write_measurements, energies, word, factor):
    (finding,) = find(write_measurements, *energies)
    assert finding.severity == "sick"
    assert word in finding.message
    assert finding.evidence["energy_per_layer"] == pytest.approx(factor)


@pytest.mark.parametrize(
    "energies",
    [
        (1.0, 1.0, 1.0),
        tuple(1.467**i for i in range(20, 0, -1)),  # twenty blocks of batch norm and ReLU: 1 500 in all, as must be
        (9.0, 1.0),  # too little in all
        (0.02, 0.14, 1.0),  # average pooling does that
        (0.05, 1.0),
        (math.nan, 1.0, 1.0),
        (0.0, 0.0),
        (1.0,),
    ],
)
def test_what_random_weights_of_the_right_size_do_is_no_finding(write_measurements, energies):
    assert find(write_measurements, *energies) == []


def test_only_the_state_before_training_counts(write_measurements):
    assert find(write_measurements, 1.0, 16.0, 256.0, step=10) == []


def test_the_advised_factor_would_make_the_energy_even(write_measurements):
    (finding,) = find(write_measurements, 1.0, 16.0, 256.0)  # weights of a quarter of the right size: 1/16 a layer
    assert finding.advice.startswith("Multiply the weights by 4:")
