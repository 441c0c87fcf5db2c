"""CovariateShift: how much does the step of the layers below change a layer's own gradient?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from normlens.nn.vocabulary import is_normalization
from normlens.probes.module_kinds import is_weight_layer
from normlens.probes.one_batch import at_the_mean, first_batch, training
from normlens.risk import EmpiricalRisk
from normlens.run.capture import Layers
from normlens.run.probe import Step
from normlens.run.reading import Reading
from normlens.typing import Named

__all__ = ["CovariateShift"]


@dataclass(frozen=True)
class CovariateShift:
    r"""Gradient-based internal covariate shift of layers, by the last step of the optimizer.

    .. math:: G_i = \nabla_{W_i} L(W_1^t, \dots, W_k^t), \qquad
              G'_i = \nabla_{W_i} L(W_1^{t+1}, \dots, W_{i-1}^{t+1}, W_i^t, \dots, W_k^t),

    both on the same batch: the gradient that layer i stepped by, and the one it would have found had the layers below
    moved first. ``shift`` is :math:`\|G_i - G'_i\|_2`, ``cosine`` that of the angle between them, ``gradient_norm``
    :math:`\|G_i\|_2`. :math:`W_i` are weight and bias of the i-th linear or convolution layer, in the order of the
    calls. All other parameters (of normalizations, embeddings, recurrent layers) belong to the layers below whatever
    is called after them: the norm between two layers moves with the lower one.

    ``layers`` counts what was measured: 0 before the first step, and where no layer has another below it that moved.
    The normalizations use the batch's statistics whatever the mode, as the training does, and the running ones stay as
    they are.

    Source: Santurkar, Tsipras, Ilyas and Madry, NeurIPS 2018, arXiv:1805.11604, definition 2.1.

    Args:
        samples: how many of the probe data.
        largest: how many layers at most, spread evenly over the depth, the last one among them: each costs a gradient.
        layers: which layers; None for all.
    """

    samples: int = 256
    largest: int = 4
    layers: Layers = None
    uses_update: ClassVar[bool] = True

    def cost(self, step: Step) -> float:
        """A gradient, and another for each layer."""
        return 1.0 + self.largest

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``largest`` is not positive, or ``layers`` names nothing.
        """
        if self.largest < 1:
            raise ValueError(f"covariate_shift needs at least 1 layer; got largest={self.largest}; 4 is usual")
        now = {name: p for name, p in step.risk.parameters.items() if name in (step.update or {})}
        owned = _by_module(step, now)
        chosen = [layer for layer in step.activations(self.layers) if layer in owned and _has_weights(step, layer)]
        chosen = _spread([layer for layer in chosen if _below(owned, layer)], self.largest)
        yield Reading("layers", float(len(chosen)))
        if chosen and step.update is not None:
            update = step.update
            before = {name: p - update[name].to(p) for name, p in now.items()}
            risk = first_batch(step.risk, self.samples).select(list(now))
            with at_the_mean(risk.model), training(risk.model, is_normalization):
                yield from _shifts(risk, owned, chosen, before)


def _by_module(step: Step, parameters: Iterable[str]) -> dict[str, list[str]]:
    """Return the parameters of each module that is called, in the order of the calls.

    What a module computes with without calling its owner (an ``out_proj``, a parametrization) is its own.
    """
    called = [name for name in step.activations(None) if "@" not in name]
    owned: dict[str, list[str]] = {"": [], **{name: [] for name in called}}
    for parameter in parameters:
        owner = parameter.rpartition(".")[0]
        while owner not in owned:
            owner = owner.rpartition(".")[0]
        owned[owner].append(parameter)
    return {name: found for name, found in owned.items() if found}


def _has_weights(step: Step, layer: str) -> bool:
    return is_weight_layer(step.risk.model.get_submodule(layer))


def _below(owned: dict[str, list[str]], layer: str) -> list[str]:
    order = list(owned)
    return [name for module in order[: order.index(layer)] for name in owned[module]]


def _spread(layers: Sequence[str], most: int) -> list[str]:
    """Return at most so many, evenly spaced, ending with the last."""
    count = min(len(layers), most)
    return [layers[(i + 1) * len(layers) // count - 1] for i in range(count)]


def _shifts(risk: EmpiricalRisk, owned: dict[str, list[str]], chosen: list[str], before: Named) -> Iterator[Reading]:
    old, now = risk.gradient(at=before), risk.parameters
    for layer in chosen:
        moved = risk.gradient(at={**before, **{name: now[name] for name in _below(owned, layer)}})
        g, g_moved = (_joined(gradient, owned[layer]) for gradient in (old, moved))
        norm = float(g.norm())
        yield Reading("shift", float((g - g_moved).norm()), layer=layer, n=risk.samples)
        yield Reading("cosine", float((g / g.norm()) @ (g_moved / g_moved.norm())), layer=layer, n=risk.samples)
        yield Reading("gradient_norm", norm, layer=layer, n=risk.samples)


def _joined(gradient: Named, names: list[str]) -> Tensor:
    return torch.cat([gradient[name].double().flatten() for name in names])
