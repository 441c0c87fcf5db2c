"""The layers of a model that set values to zero at random, and what one forward pass has before and behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from normlens.nn.independent_component import IndependentComponent
from normlens.probes.one_batch import training
from normlens.risk import EmpiricalRisk
from normlens.run.capture import Activation, capture

__all__ = ["Gate", "gates_in", "keep_probability", "train_pass"]

_SHARED = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # one gate for all positions of a channel


@dataclass(frozen=True)
class Gate:
    """One dropout in one forward pass in train mode.

    Attributes:
        activation: its input is what the gates multiply (behind an independent-component layer's batch norm), its
            output what came of it: gate times value over ``keep_prob``.
        keep_prob: probability that a value stays, in (0, 1).
        shared: whether all positions of a channel have one gate (``Dropout2d``), instead of one each.
    """

    activation: Activation
    keep_prob: float
    shared: bool

    @property
    def before(self) -> Tensor:
        """What the gates multiply, ``(samples, positions, channels)``."""
        return self.activation.input_samples

    @property
    def after(self) -> Tensor:
        """What came of it, of the same shape."""
        return self.activation.output_samples


def keep_probability(module: nn.Module) -> float | None:
    """Return the probability that a value stays, or None for a module that drops nothing, or all.

    ``Dropout``, ``Dropout1d``, ``2d``, ``3d`` and independent-component layers; not ``AlphaDropout``, whose dropped
    values are not zero, and not what recurrent and attention layers drop within themselves.
    """
    if isinstance(module, IndependentComponent):
        keep = module.keep_prob
    elif isinstance(module, (nn.Dropout, *_SHARED)):
        keep = 1 - module.p
    else:
        return None
    return keep if 0 < keep < 1 else None


def train_pass(risk: EmpiricalRisk, seed: int) -> dict[str, Activation]:
    """Capture one pass in train mode, dropout and batch statistics included, whatever the mode of the risk.

    Args:
        risk: on one batch.
        seed: of the masks; ``risk`` keeps it.
    """
    risk.seed = seed
    with training(risk.model, lambda _: True):
        return capture(risk)


def gates_in(activations: Mapping[str, Activation]) -> Iterator[tuple[str, Gate]]:
    """Yield name and gate of every dropout that was called, in network order.

    The output of its activation is the very tensor in ``activations``, so that what reads it next can be found.

    Args:
        activations: of :func:`train_pass`.
    """
    for name, activation in activations.items():
        keep = keep_probability(activation.module)
        if keep is None or activation.output.shape != activation.input.shape or activation.input.ndim < 2:
            continue
        shared = isinstance(activation.module, _SHARED) and activation.input.ndim > 2
        # Dropout2d and the independent-component layer have their channels at dimension 1 wherever they stand.
        fixed = shared or isinstance(activation.module, IndependentComponent)
        seen = replace(activation, input_channels=1, output_channels=1) if fixed else activation
        yield name, Gate(replace(seen, input=_ungated(activation)), keep, shared)


def _ungated(activation: Activation) -> Tensor:
    """Return what the gates multiply: the input, which an independent-component layer standardizes first."""
    layer = activation.module
    if not isinstance(layer, IndependentComponent):
        return activation.input
    with torch.no_grad():
        return nn.functional.batch_norm(activation.input, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
