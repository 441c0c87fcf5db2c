"""Trains a patient under a lens with every probe that the rules read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from faults.patient import Patient
from normlens import probes
from normlens.data.batching import Batches
from normlens.run.lens import Lens
from normlens.run.probe import Probe
from normlens.run.schedule import at, every
from normlens.run.store import Run
from normlens.typing import Schedule

__all__ = ["PROBES", "WHEN", "watch"]

WHEN = every(50) | at(1, 20)
"""Seven measurements in 200 steps: the first moments are when most goes wrong."""

SELDOM = at(0, 100, 200)
"""For what is expensive and only asked for its last word."""


@dataclass(frozen=True)
class FisherVector(probes.FisherVector):
    """With a schedule of its own: to fit mixtures is a third of what the zoo would cost."""

    when: Schedule | None = None


PROBES: tuple[Probe, ...] = (
    probes.TrainingCurve(),
    probes.Elimination(),
    probes.ActivationDrift(),
    probes.EdgeOfStability(tol=1e-2),  # precise enough for a rule, at half the cost
    probes.WeightDynamics(),
    probes.Saturation(),
    probes.BatchNoise(),
    probes.RankCollapse(),
    probes.ActivationCondition(),
    probes.GradientFlow(),
    probes.VarianceShift(),
    FisherVector(most=2, values=512, when=SELDOM),
)


def watch(patient: Patient, out: Path, seed: int) -> Run:
    """Train to the end and return what was measured; whatever the fault breaks in a probe is recorded, not raised."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)  # dropout draws from the global state
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _train(patient, out, seed, [*PROBES, *patient.extra])
    finally:
        torch.random.set_rng_state(state)
    return Run(out)


def _train(patient: Patient, out: Path, seed: int, chosen: list[Probe]) -> None:
    model, optimizer, step = patient.model.train(), patient.optimizer, 0
    batches = Batches(patient.inputs, patient.targets, batch_size=patient.batch_size, seed=seed, drop_last=True)
    fixed = patient.inputs[:256], patient.targets[:256]
    with Lens(
        model, patient.loss, fixed, probes=chosen, out=out, every=WHEN, budget=patient.budget, optimizer=optimizer,
        min_runs=2 if patient.budget is None else 0, seed=seed,
    ) as lens:  # fmt: skip
        while step < patient.steps:
            for x, y in batches:
                optimizer.zero_grad()
                loss = patient.loss(model(x), y)
                loss.backward()
                optimizer.step()
                step += 1
                if patient.after_step:
                    patient.after_step(step)
                lens.step(loss=loss, batch=(x, y))
                if step == patient.steps:
                    break
