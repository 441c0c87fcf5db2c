"""The mean square with a backward pass of one multiplication, where PyTorch's own takes several times as long."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlens.nn.forward_mode import has_tangent

__all__ = ["mean_square"]


def mean_square(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean of ``x^2`` over ``dims``, which stay as ones; the derivative by ``x`` is ``2 x / count``.

    The same as ``x.square().mean(dims, keepdim=True)``, in every derivative mode. The backward pass of that goes
    through ``pow`` and writes several tensors of the size of ``x`` where one is enough: in a layer that needs little
    else it took most of the time of both passes.
    """
    # The compiler fuses it by itself. PyTorch's functions with a derivative of their own lose the second tangent where
    # one jvp is within another (torch 2.13), so that forward mode takes the plain way. And to call one costs 20 us,
    # which is not worth it where no backward pass will come.
    if torch.compiler.is_compiling() or not (x.requires_grad and torch.is_grad_enabled()) or has_tangent(x):
        return (x * x).mean(dims, keepdim=True)
    result: Tensor = _MeanSquare.apply(x, dims)  # type: ignore[no-untyped-call]
    return result


class _MeanSquare(torch.autograd.Function):
    """Forward, backward and tangent are each written in operations that can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...]) -> Tensor:
        return x.square().mean(dims, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.dims = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        return x * (gradient * (2 * gradient.numel() / x.numel())), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (x,), tangent = ctx.saved_tensors, tangents[0]
        mean: Tensor = (x * tangent).mean(ctx.dims, keepdim=True)
        return 2 * mean
