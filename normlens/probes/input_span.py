"""The part of a layer's weights that its inputs reach, and the part that no gradient can change."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.nn.functional import promote

__all__ = ["SpanDecomposition", "weight_span_decomposition"]

_ROWS = 8192  # of inputs at most: an orthogonal decomposition of 8192 x 576 numbers takes a third of a second


class SpanDecomposition(NamedTuple):
    """A weight ``(out, in, *kernel)`` as the sum of two orthogonal parts.

    Attributes:
        parallel: its rows within the span of the inputs.
        orthogonal: its rows across it.
        ratio: the energy ``|orthogonal|^2 / |weight|^2``, in [0, 1].
    """

    parallel: Tensor
    orthogonal: Tensor
    ratio: float


def weight_span_decomposition(module: nn.Module, inputs: Tensor, *, rcond: float | None = None) -> SpanDecomposition:
    r"""Project the rows of a weight on the span of the layer's inputs: ``W P`` and ``W (I - P)``.

    :math:`\nabla_W L = \sum_n \delta_n x_n^\top`, so that gradients lie in the span of the inputs (of a convolution: of
    its patches) that they are taken on: SGD leaves :math:`W P_\perp` as it was, weight decay shrinks it by :math:`1 -
    \eta\lambda` in every step. In float64; the inputs count as dependent below ``rcond`` of their largest singular
    value.

    Source: Liu, Cui, Wan, Mao and Chan, arXiv:2102.03497 ("weight noise").

    Args:
        module: ``torch.nn.Linear``, ``Conv1d`` or ``Conv2d`` without groups.
        inputs: what enters it, ``(N, ..., in)`` or ``(N, in, *spatial)``; of convolutions as many of the first samples
            as make 8192 patches.
        rcond: None for the larger dimension times the eps of the inputs.

    Raises:
        ValueError: it is another layer.
    """
    rows = _rows(module, inputs)
    kernel = module.get_parameter("weight").detach()
    weight = kernel.flatten(1).double()
    if not bool(rows.isfinite().all() and weight.isfinite().all()):
        lost = torch.full_like(weight, torch.nan)
        return SpanDecomposition(lost, lost, math.nan)
    if rcond is None:
        rcond = max(rows.shape) * torch.finfo(inputs.dtype).eps
    wide = rows.double()
    # An orthogonal factorization first: it is cheaper than the singular values of all rows, and keeps their digits.
    _, sizes, directions = torch.linalg.svd(torch.linalg.qr(wide, mode="r").R, full_matrices=False)
    span = directions[sizes > rcond * sizes[0]]
    parallel = weight @ span.T @ span
    orthogonal = weight - parallel
    ratio = float(orthogonal.square().sum() / weight.square().sum())
    return SpanDecomposition(parallel.reshape(kernel.shape), orthogonal.reshape(kernel.shape), ratio)


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what each output position sees, one row for each."""
    x = promote(inputs.detach())
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])[:_ROWS]
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups != 1:
        raise ValueError(
            "the inputs' span is known for Linear, Conv1d and Conv2d without groups; "
            f"got {type(module).__name__}; name other layers"
        )
    return _patches(module, x)


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    flat = isinstance(module, nn.Conv1d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    positions = max(1, math.prod(x.shape[2:]) // math.prod(module.stride))
    padded = F.pad(x[: max(1, _ROWS // positions)], module._reversed_padding_repeated_twice, mode=mode)
    if flat:
        padded = padded.unsqueeze(2)
    sizes = [(1, *setting) if flat else setting for setting in (module.kernel_size, module.dilation, module.stride)]
    columns = F.unfold(padded, sizes[0], dilation=sizes[1], stride=sizes[2])
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])
