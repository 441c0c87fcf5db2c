"""The faults: each is planted into a run with nothing else wrong, and has a rule that must name it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from faults import plant
from faults.patient import Architecture, Patient, build, patient
from normlens.nn.vocabulary import is_normalization
from normlens.report.finding import Finding
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["FAULTS", "Fault"]


@dataclass(frozen=True)
class Fault:
    """Something wrong with a run.

    Attributes:
        name: what is wrong.
        rule: which rule must say so.
        plant: ``plant(architecture, seed)`` -> the patient, or None where the architecture has no place for it.
        says: a word that the finding must have, where a rule has two sides.
    """

    name: str
    rule: str
    plant: Callable[[Architecture, int], Patient | None]
    says: str = ""

    def is_named(self, findings: Iterable[Finding]) -> bool:
        """Say whether the findings have the planted fault among them."""
        return any(finding.rule == self.rule and self.says in finding.message for finding in findings)


def dead_units(a: Architecture, seed: int) -> Patient | None:
    """Half of the units of every rectified layer start with a bias far below their inputs."""
    model = build(a, None, seed)
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        return None
    with torch.no_grad():
        for layer in plant.hidden(model):
            if layer.bias is not None:
                layer.bias[::2] = -100.0
    return patient(a, None, seed, model=model, decay=0.0)


def nearly_dead_units(a: Architecture, seed: int) -> Patient | None:
    """Half of the channels of every batch norm are shifted to where hardly one value in a hundred is positive."""
    model = build(a, "batch_norm", seed)
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        return None
    with torch.no_grad():
        for norm in plant.norms(model):
            norm.bias[::2] = -2.45
            norm.bias.requires_grad_(False)
    return patient(a, "batch_norm", seed, model=model)


def pulled_down(a: Architecture, seed: int) -> Patient | None:
    """A penalty on the shift of the norms, meant for sparsity, moves all channels towards zero activity."""
    made = patient(a, "batch_norm", seed)

    @torch.no_grad()
    def pull(_: int) -> None:
        for norm in plant.norms(made.model):
            norm.bias.sub_(0.01)

    return replace(made, after_step=pull) if any(isinstance(m, nn.ReLU) for m in made.model.modules()) else None


def saturated(a: Architecture, seed: int) -> Patient | None:
    """Tanh units with weights ten times too large."""
    model = plant.scale(build(a, None, seed), 10 * 0.5**0.5)
    if not plant.replace(model, nn.ReLU, nn.Tanh):
        return None
    return patient(a, None, seed, model=model, lr=0.01)


def far_too_high(a: Architecture, seed: int) -> Patient:
    """A learning rate with which the loss leaves every sensible range."""
    return patient(a, None, seed, lr=5.0, decay=0.0)


def logarithm_of_zero(a: Architecture, seed: int) -> Patient:
    """Raw pixels up to 255 and a softmax that underflows before its logarithm is taken."""
    made = patient(a, None, seed, lr=0.01)
    return replace(made, inputs=255 * made.inputs, loss=plant.Naive())


def above_the_edge(a: Architecture, seed: int) -> Patient:
    """A rate beyond the edge of stability, which the normalization just survives."""
    return patient(a, "batch_norm", seed, lr=2.0, momentum=0.0)


def far_too_low(a: Architecture, seed: int) -> Patient:
    """A thousandth of the rate that works."""
    return patient(a, "batch_norm", seed, lr=5e-5)


def vanishing(a: Architecture, seed: int) -> Patient:
    """Weights a tenth of what keeps the signal's size."""
    return patient(a, None, seed, model=plant.scale(build(a, None, seed), 0.1))


def exploding(a: Architecture, seed: int) -> Patient:
    """Weights four times what keeps the signal's size."""
    return patient(a, None, seed, model=plant.scale(build(a, None, seed), 4.0), lr=1e-4)


def runaway(a: Architecture, seed: int) -> Patient:
    """A high rate without decay for weights whose length does not matter, an ordinary one for the others."""
    made = patient(a, "batch_norm", seed)
    matrices = [layer.weight for layer in plant.hidden(made.model)]
    others = [p for p in made.model.parameters() if all(p is not weight for weight in matrices)]
    groups = [{"params": matrices, "lr": 20.0}, {"params": others, "lr": 0.1}]
    return replace(made, optimizer=torch.optim.SGD(groups))


def stale_statistics(a: Architecture, seed: int) -> Patient:
    """Running statistics that take ten thousand steps to follow."""
    made = patient(a, "batch_norm", seed)
    for module in made.model.modules():
        if hasattr(module, "running_mean"):
            module.momentum = 1e-4
    return made


def tiny_batches(a: Architecture, seed: int) -> Patient:
    """Batch norm on two images at a time."""
    return replace(patient(a, "batch_norm", seed, lr=0.01), batch_size=2)


def dropout_before_norm(a: Architecture, seed: int) -> Patient:
    """Dropout of half the values before the layers in front of every norm but the first."""
    model = build(a, "batch_norm", seed)
    plant.put_before(model, is_normalization, lambda: nn.Dropout(0.5))
    return patient(a, "batch_norm", seed, model=model)


def another_world(a: Architecture, seed: int) -> Patient:
    """In mid-training the images are inverted and ten times as bright."""
    made = patient(a, None, seed, lr=0.02)
    inputs = made.inputs.clone()
    made = replace(made, inputs=inputs)

    def switch(step: int) -> None:
        if step == 110:
            inputs.copy_(3 * (1 - inputs))

    return replace(made, after_step=switch)


def all_alike(a: Architecture, seed: int) -> Patient:
    """Weights that start at one number, so that no unit of a layer can become another than its neighbor."""
    model = build(a, "batch_norm", seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.abs().mean((0, 1), keepdim=True).expand_as(parameter))
    return patient(a, "batch_norm", seed, model=model)


def two_worlds(a: Architecture, seed: int) -> Patient:
    """Half of the images come from a camera that adds three times their brightness."""
    made = patient(a, "batch_norm", seed)
    inputs = made.inputs.clone()
    inputs[::2] += 3.0
    return replace(made, inputs=inputs)


def uncentred(a: Architecture, seed: int) -> Patient:
    """Pixels around 5 instead of around 0, as raw measurements come."""
    made = patient(a, None, seed, lr=1e-3)
    return replace(made, inputs=made.inputs + 5.0)


@dataclass(frozen=True)
class GivesUp:
    """A probe that fails from the second measurement on."""

    def cost(self, step: Step) -> float:
        return 0.1

    def __call__(self, step: Step) -> Iterable[Reading]:
        if step.previous.first:
            raise ValueError("planted")
        yield Reading("fine", 1.0)


def failing_probe(a: Architecture, seed: int) -> Patient:
    """A probe that begins to fail in mid-training."""
    return replace(patient(a, "batch_norm", seed), extra=(GivesUp(),))


def no_budget(a: Architecture, seed: int) -> Patient:
    """A budget that pays for no measurement at all."""
    return replace(patient(a, "batch_norm", seed), budget=1e-4)


FAULTS = [
    Fault("half of the units dead", "dead_channels", dead_units),
    Fault("channels hardly ever active", "near_dead", nearly_dead_units),
    Fault("shifts pulled down", "margin_shrinking", pulled_down),
    Fault("tanh with weights x 10", "saturated", saturated),
    Fault("learning rate x 100", "diverged", far_too_high),
    Fault("logarithm of zero", "non_finite", logarithm_of_zero),
    Fault("rate beyond the edge", "above_the_edge", above_the_edge),
    Fault("learning rate / 1000", "rate_too_low", far_too_low),
    Fault("weights / 10 without norm", "gradients_at_init", vanishing, "vanishes"),
    Fault("weights x 4 without norm", "gradients_at_init", exploding, "explodes"),
    Fault("no decay at a high rate", "norm_runaway", runaway),
    Fault("momentum of batch norm 1e-4", "stale_statistics", stale_statistics),
    Fault("batch norm on 2 images", "tiny_batches", tiny_batches),
    Fault("dropout before batch norm", "variance_shift", dropout_before_norm),
    Fault("images change in mid-training", "drift", another_world),
    Fault("all units alike", "collapsed", all_alike),
    Fault("images of two cameras", "multi_modal", two_worlds),
    Fault("inputs around 5", "ill_conditioned_inputs", uncentred),
    Fault("a probe that gives up", "probe_failed", failing_probe),
    Fault("no time to measure", "probe_starved", no_budget),
]
