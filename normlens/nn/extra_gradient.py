"""A term of its own in the gradient of a layer whose backward pass is not the derivative of its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["add_to_gradient"]


def add_to_gradient(y: Tensor, x: Tensor, term: Tensor, seen: Callable[[Tensor], None]) -> Tensor:
    r"""Return ``y``; the first backward pass through it adds ``term`` to the gradient by ``x``.

    A loss ``L`` of the result has ``dL/dx = (dL/dx as y depends on x) + term``: the term does not scale with what comes
    in, so that the backward pass is an affine map, not a linear one. It belongs to the loss, hence to the first
    backward pass alone: all later ones through the same graph (the second half of a Hessian-vector product, a product
    with the Jacobian) are linear. The derivative of the gradient holds that of ``term``, as far as it depends on ``x``.

    Args:
        y: the value, any shape.
        x: what gets the term, of the shape of ``term``.
        term: the gradient to add.
        seen: called once, in that first backward pass, with ``dL/dy``, detached.
    """
    result: Tensor = _ExtraGradient.apply(y, x, term, [seen])  # type: ignore[no-untyped-call]
    return result


class _ExtraGradient(torch.autograd.Function):
    """The list holds ``seen`` until it was called; it is one and the same at every level of ``torch.func``."""

    @staticmethod
    def forward(y: Tensor, x: Tensor, term: Tensor, waiting: list[Callable[[Tensor], None]]) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, term, ctx.waiting = inputs
        ctx.save_for_backward(term)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (term,) = gradients, ctx.saved_tensors
        if not ctx.waiting:
            return gradient, None, None, None
        ctx.waiting.pop()(gradient.detach())
        return gradient, term, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        tangent: Tensor = tangents[0]
        return tangent.view_as(tangent)
