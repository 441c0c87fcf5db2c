"""GradientPredictiveness: over how long a step does the gradient still say where the loss goes?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from normlens.nn.vocabulary import is_normalization
from normlens.probes.one_batch import at_the_mean, first_batch, training
from normlens.risk import EmpiricalRisk
from normlens.run.probe import Step
from normlens.run.reading import Reading
from normlens.typing import Named

__all__ = ["GradientPredictiveness"]


@dataclass(frozen=True)
class GradientPredictiveness:
    r"""How loss and gradient change along the gradient, at multiples of the learning rate.

    With :math:`g = \nabla L(\theta)`, the step :math:`s = \eta g` (each parameter by the rate of its group, 0 for one
    that the optimizer does not hold) and every multiple m:

    * ``loss_at`` :math:`L(\theta - ms)`, and its range ``loss_min`` to ``loss_max``, beside ``loss`` :math:`L(\theta)`,
    * ``change_at`` :math:`\|g - \nabla L(\theta - ms)\|`, its range ``change_min`` to ``change_max``, and
      ``relative_change``, the largest over :math:`\|g\|`: where it is well below 1, the gradient predicts the whole
      step,
    * ``smoothness`` :math:`\max_m \|g - \nabla L(\theta - ms)\| / \|ms\|`, the effective :math:`\beta` of
      :math:`\beta`-smoothness in that direction,

    with ``gradient_norm`` :math:`\|g\|` and ``rate``, the largest :math:`\eta`. On a quadratic :math:`\tfrac12 x^\top
    Ax` the change is :math:`m\eta\|Ag\|` and the smoothness :math:`\|Ag\|/\|g\|`. All on one fixed batch; the
    normalizations use its statistics whatever the mode, as the training does: with the running ones of another point
    the loss would be that of no network. Running statistics stay as they are. Momentum and adaptive steps lead
    elsewhere than the gradient: of those optimizers it is the rate alone that is taken.

    Source: Santurkar, Tsipras, Ilyas and Madry, NeurIPS 2018, arXiv:1805.11604, section 3.2.

    Args:
        samples: how many of the probe data.
        multiples: of the learning rate, positive.
        rate: the learning rate where the lens knows no optimizer.
    """

    samples: int = 256
    multiples: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    rate: float = 0.1

    def cost(self, step: Step) -> float:
        """A gradient, and for each multiple another and a loss."""
        return 1.0 + 1.4 * len(self.multiples)

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: a multiple is not positive, or no parameter is trainable.
        """
        if not self.multiples or not all(multiple > 0 for multiple in self.multiples):
            raise ValueError(
                f"gradient predictiveness needs multiples above 0; got {self.multiples}; (0.5, 1, 2, 4) is usual"
            )
        risk = first_batch(step.risk, self.samples)
        theta = risk.parameters
        if not theta:
            raise ValueError("gradient predictiveness needs at least one trainable parameter; got none: thaw one")
        rates = _rates(step, theta, self.rate)
        with at_the_mean(risk.model), training(risk.model, is_normalization):
            gradient, loss = risk.gradient(), _loss(risk, theta)
            points = [_point(risk, gradient, rates, multiple) for multiple in self.multiples]
        yield Reading("loss", loss, n=risk.samples)
        yield Reading("rate", max(rates.values()))
        yield Reading("multiple", np.array(self.multiples, dtype=float), dims=("multiple",))
        yield from _readings(points, _norm(gradient), risk.samples)


class _Point(NamedTuple):
    """What was found at one multiple of the step: the loss, how far the gradient moved, and the parameters."""

    loss: float
    change: float
    distance: float


def _rates(step: Step, names: Iterable[str], otherwise: float) -> dict[str, float]:
    if step.optimizer is None:
        return dict.fromkeys(names, otherwise)
    held = {id(p): float(group["lr"]) for group in step.optimizer.param_groups for p in group["params"]}
    parameters = dict(step.risk.model.named_parameters())
    return {name: held.get(id(parameters[name]), 0.0) for name in names}


def _point(risk: EmpiricalRisk, gradient: Named, rates: dict[str, float], multiple: float) -> _Point:
    shift = {name: multiple * rates[name] * g for name, g in gradient.items()}
    there = {name: theta - shift[name] for name, theta in risk.parameters.items()}
    after = risk.gradient(at=there)
    change = {name: g.double() - after[name].double() for name, g in gradient.items()}
    return _Point(_loss(risk, there), _norm(change), _norm(shift))


def _loss(risk: EmpiricalRisk, at: Named) -> float:
    with torch.no_grad():
        return float(risk.batch_loss(at, next(risk.batches())))


def _norm(tensors: Named) -> float:
    return float(np.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values())))


def _readings(points: list[_Point], norm: float, n: int) -> Iterator[Reading]:
    losses, changes, distances = (np.array(column) for column in zip(*points, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):  # without a gradient, or at a rate of 0, nothing is known
        slopes, relative = changes / distances, changes.max() / np.float64(norm)
    yield Reading("gradient_norm", norm, n=n)
    for name, values in (("loss", losses), ("change", changes)):
        yield Reading(f"{name}_at", values, dims=("multiple",), n=n)
        yield Reading(f"{name}_min", float(values.min()), n=n)
        yield Reading(f"{name}_max", float(values.max()), n=n)
    yield Reading("relative_change", float(relative), n=n)
    yield Reading("smoothness", float(slopes.max()), n=n)
