from __future__ import annotations

import argparse

import pytest
import torch

from normlens.catalog import load, names
from normlens.cli.experiment import plan
from normlens.probes.edge_of_stability import EdgeOfStability


def options(**changes) -> argparse.Namespace:
    settings = {
        "data": "digits", "data_dir": None, "model": "mlp", "norm": "batch_norm,none", "placement": "pre-activation",
        "weights": "none", "schedule": "constant", "augment": "none",
        "probes": None, "epochs": 2, "batch_size": 64, "optimizer": "sgd", "lr": 0.05, "seeds": "3,4", "device": "cpu",
        "every": None, "probe_samples": 256, "budget": 0.25, "out": None, "overwrite": False, "quiet": True,
        "json": False,
    }  # fmt: skip
    return argparse.Namespace(**{**settings, **changes})


def test_the_plan_resolves_every_name():
    experiment = plan(options())
    assert [(v.norm, v.seed) for v in experiment.variants] == [
        ("batch_norm", 3), ("batch_norm", 4), ("none", 3), ("none", 4),
    ]  # fmt: skip
    assert [type(probe).__name__ for probe in experiment.probes] == [
        load("normlens.probes", name).__name__ for name in names("normlens.probes")
    ]
    assert "runs    batch_norm, seed 3; batch_norm, seed 4; none, seed 3; none, seed 4" in experiment.describe()
    assert "budget 25% of the training time" in experiment.describe()


def test_the_probe_batch_is_the_same_for_every_norm_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = (plan(options(norm=norm))._probe_batch() for norm in ("batch_norm", "none"))
    assert torch.equal(first[0], second[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert len(first[0]) == 256
    assert torch.equal(plan(options(probe_samples=40))._probe_batch()[0], first[0][:40])


def test_about_forty_measurements_are_made_unless_every_is_given():
    experiment = plan(options(epochs=20))
    steps = 20 * 23  # 1442 images in batches of 64
    assert 40 <= steps // experiment._every <= 45
    assert plan(options(every=7))._every == 7


def test_surface_density_and_alignment_are_measured_after_the_last_step_alone():
    experiment = plan(options(probes="loss_surface,hessian_spectrum,training_curve,representation_alignment"))
    surface, spectrum, _, alignment = experiment.probes
    for when in (surface.when, alignment.when, spectrum.density_when):
        assert [step for step in range(100) if when(step)] == [2 * 23]
    assert spectrum.density_probes >= 2
    assert "LossSurface, RepresentationAlignment at the ends alone" in experiment.describe()
    assert "at the ends" not in plan(options(probes="training_curve")).describe()


@pytest.mark.parametrize(("probes", "optimizer", "measured"), [
    (None, "bnp", False), (None, "sgd", True), ("edge_of_stability", "bnp", True),
])  # fmt: skip
def test_the_edge_of_stability_of_a_transformed_step_is_measured_only_when_asked_for(probes, optimizer, measured):
    experiment = plan(options(norm="none", optimizer=optimizer, probes=probes, seeds="0"))
    (variant,) = experiment.variants
    chosen = experiment._probes(experiment._optimization(experiment._build(variant), variant))
    assert any(isinstance(probe, EdgeOfStability) for probe in chosen) == measured
