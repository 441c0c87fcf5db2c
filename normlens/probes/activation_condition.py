"""ActivationCondition: how ill-conditioned are the layers' inputs, and would batch normalization help?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.curvature.activation_condition import activation_condition
from normlens.nn.functional import promote
from normlens.probes.module_kinds import is_weight_layer
from normlens.run.capture import Activation, Layers
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["ActivationCondition"]

_MATRICES = ("raw", "centered", "normalized")
_ROUNDING = 8  # eps: of what a layer computes, a few roundings of its largest value


@dataclass(frozen=True)
class ActivationCondition:
    r"""Condition numbers of every layer's input H: with its bias column, centered, and batch-normalized.

    .. math:: \hat H = [e, H], \quad \hat HU = [e, H - e\mu^\top], \quad
              \hat G = [e, (H - e\mu^\top)\operatorname{diag}(\sigma)^{-1}]

    as ``kappa_raw``, ``kappa_centered`` and ``kappa_normalized``: the largest over the smallest singular value above
    ``tolerance`` times the largest, with ``nullity_…`` beside each, the columns less those above it (m + 1 less the
    rank; constant features are among them, and counted in ``constant``). In full rank, centering never worsens it, and
    normalizing is within :math:`\sqrt{m+1}` of the best scaling of the columns. The condition of a neuron's Hessian is
    up to the square times that of the loss's second derivatives, while nothing above the layer couples the samples.

    Rows are samples and positions, of a convolution its patches (padding included), at most ``rows`` drawn once and for
    all; below m + 1 of them it is the pseudo condition number of these. ``floor`` is the relative size that rounding in
    the activations' precision makes, and the tolerance is never below it. Left out are convolutions that are transposed
    or have groups, and layers wider than ``widest``: where there are any, or no layer at all, ``left_out`` counts them,
    and ``layers`` the others.

    Source: Lange, Helfrich and Ye, JMLR 23(72), 2022, section 3.

    Args:
        rows: at most.
        widest: numbers m that enter a unit, beyond which the singular values would cost too much.
        tolerance: relative to the largest singular value.
        seed: of the draw of rows.
        layers: which modules; None for every linear and convolution layer, those that see the data among them: data
            that nobody centered are the usual case.
    """

    rows: int = 1024
    widest: int = 576
    tolerance: float = 1e-5
    seed: int = 0
    layers: Layers = None

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"ActivationCondition needs a tolerance between 0 and 1; got {self.tolerance}; try 1e-5")

    def cost(self, step: Step) -> float:
        """A forward pass, and the singular values of three matrices for each layer."""
        return 5.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``layers`` names nothing.
        """
        chosen = step.activations(_has_weights if self.layers is None else self.layers)
        taken = {name: self._rows(activation) for name, activation in chosen.items()}
        known = {name: rows for name, rows in taken.items() if rows is not None}
        if len(known) < max(len(taken), 1):
            yield Reading("layers", float(len(known)))
            yield Reading("left_out", float(len(taken) - len(known)))
        for name, rows in known.items():
            yield from self._readings(name, rows)

    def _rows(self, activation: Activation) -> Tensor | None:
        """Return what some positions of the layer see, one row for each; None where it is left out."""
        module = activation.module
        if isinstance(module, nn.modules.conv._ConvNd):
            plain = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
            if not plain or activation.input.ndim != module.weight.ndim or module.weight[0].numel() > self.widest:
                return None
            windows = _windows(module, promote(activation.input))
            return self._drawn(windows, windows.ndim - module.weight.ndim + 1)
        samples = promote(activation.input_samples)
        return self._drawn(samples, 2) if samples.shape[-1] <= self.widest else None

    def _drawn(self, values: Tensor, places: int) -> Tensor:
        """Draw rows of values whose first ``places`` dimensions count rows."""
        count = math.prod(values.shape[:places])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: self.rows]
        where = torch.unravel_index(order.sort().values.to(values.device), values.shape[:places])
        return values[where].flatten(1)

    def _readings(self, layer: str, rows: Tensor) -> Iterator[Reading]:
        floor = _ROUNDING * float(torch.finfo(rows.dtype).eps)
        tolerance = max(self.tolerance, floor)
        n, features = rows.shape
        kappas, nullities, constant = _measured(rows, tolerance)
        for matrix, kappa, nullity in zip(_MATRICES, kappas, nullities, strict=True):
            yield Reading(f"kappa_{matrix}", kappa, layer=layer, n=n)
            yield Reading(f"nullity_{matrix}", nullity, layer=layer, n=n)
        yield Reading("constant", constant, layer=layer, n=n)
        yield Reading("features", float(features), layer=layer)
        yield Reading("tolerance", tolerance, layer=layer)
        yield Reading("floor", floor, layer=layer)


def _has_weights(name: str, module: nn.Module) -> bool:
    return is_weight_layer(module)


def _measured(rows: Tensor, tolerance: float) -> tuple[list[float], list[float], float]:
    """Return condition number and nullity of each of the three matrices, and how many features are constant."""
    if not bool(rows.isfinite().all()):
        return [math.nan] * 3, [math.nan] * 3, math.nan
    found = activation_condition(rows.cpu() if rows.device.type == "mps" else rows)
    above = [values[values > tolerance * values[0]] for values in found.singular_values]
    kappas = [float(values[0] / values[-1]) for values in above]
    return kappas, [float(found.features + 1 - len(values)) for values in above], float(found.constant)


def _windows(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """Return a view of the padded input as (samples, *positions, channels, *kernel)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    windows = F.pad(x.detach(), module._reversed_padding_repeated_twice, mode=mode)
    settings = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(settings, start=2):
        windows = windows.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return windows.movedim(1, x.ndim - 1)
