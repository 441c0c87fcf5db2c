"""Rows divided by their root mean square and scaled, with PyTorch's kernel for layer norm as the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlens.nn.forward_mode import has_tangent

__all__ = ["has_kernel", "rms_rows"]


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`rms_rows` is right here, and worth the 20 us that a function of one's own costs.

    The compiler fuses by itself; in forward mode such a function loses the second tangent of ``jvp(jvp)``.
    """
    needed = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    known = x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()
    return needed and known and not has_tangent(x, weight)


def rms_rows(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``weight x / sqrt(mean(x^2) + eps)`` of rows ``(N, D)``, with one weight for each column."""
    y: Tensor = _RmsRows.apply(x, weight, eps)[0]  # type: ignore[no-untyped-call]
    return y


class _RmsRows(torch.autograd.Function):
    r"""With :math:`i = 1 / \sqrt{\overline{x^2} + \epsilon}` and :math:`u = w g`: :math:`i u - x i^3 \overline{u x}`.

    The kernel's backward pass with a mean of 0 is that less :math:`i \overline{u}`, which is put back. Where the
    backward pass is itself differentiated, it is spelled out.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        inverse = (torch.linalg.vector_norm(x, dim=1, keepdim=True).square() / x.shape[1] + eps).rsqrt()
        return x * inverse * weight, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, ctx.eps = inputs
        ctx.save_for_backward(x, weight, output[1])
        ctx.save_for_forward(x, weight, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled() or has_tangent(gradients[0], x, weight):
            return *_spelled_out(gradients[0], x, weight, ctx.eps), None
        return *_by_kernel(gradients[0], x, weight, inverse), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        along_x, along_weight, _ = tangents
        unit = x * inverse
        moved = inverse * (along_x - unit * (unit * along_x).mean(1, keepdim=True))
        return moved * weight + unit * along_weight, None


def _by_kernel(gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    no_mean = torch.zeros_like(inverse)
    by_x, by_weight, _ = torch.ops.aten.native_layer_norm_backward(
        gradient, x, x.shape[1:], no_mean, inverse, weight, None, [True, True, False]
    )
    return by_x.add_((gradient @ weight).unsqueeze(1) * inverse / x.shape[1]), by_weight


def _spelled_out(gradient: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inverse = ((x * x).mean(1, keepdim=True) + eps).rsqrt()
    unit, scaled = x * inverse, gradient * weight
    return inverse * (scaled - unit * (scaled * unit).mean(1, keepdim=True)), (gradient * unit).sum(0)
