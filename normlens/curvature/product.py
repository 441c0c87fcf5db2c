"""The ways to form a product H v of the Hessian of one batch's loss.

Right through every native normalization kernel are double backward, ``jvp(grad)`` and ``linearize(grad)``; they are
all that is here. ``jvp(jacrev)``, ``grad(jvp)`` and ``jvp(jvp)`` are silently wrong through several and never used.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jvp, linearize
from torch.nn.attention import SDPBackend, sdpa_kernel

from normlens.curvature.layout import ParameterLayout
from normlens.risk import EmpiricalRisk
from normlens.typing import Batch

__all__ = ["Compiled", "ForwardOverReverse", "HessianProduct", "Linearized", "RecomputedGraph", "RetainedGraph"]


class HessianProduct(ABC):
    """v -> H v for the loss of one batch, with flat vectors.

    Args:
        risk: model, loss and mode.
        layout: the order of the parameters.
        batch: the batch.
    """

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        self.risk, self.layout, self.batch = risk, layout, batch

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""

    def _loss(self, theta: dict[str, Tensor]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            return checked_loss(self.risk.batch_loss(theta, self.batch))


class RetainedGraph(HessianProduct):
    """Double backward through a graph of the gradient that is built once and kept.

    About 2.3 to 3 gradients a product; memory for the activations of forward and backward pass.
    """

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        super().__init__(risk, layout, batch)
        self._theta, self._gradient = gradient_graph(self._loss, risk)

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""
        return second_backward(self._theta, self._gradient, self.layout, v, retain=True)


class RecomputedGraph(HessianProduct):
    """Double backward through a graph that is built for each product: about 4 gradients, no memory between products."""

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""
        theta, gradient = gradient_graph(self._loss, self.risk)
        return second_backward(theta, gradient, self.layout, v, retain=False)


class ForwardOverReverse(HessianProduct):
    """``jvp(grad)``: about 5 gradients, the least memory; needs forward-mode formulas for every operation."""

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""
        theta, tangent = self.risk.parameters, self.layout.unflatten(v)
        result: dict[str, Tensor] = jvp(grad(self._loss), (theta,), (tangent,))[1]
        return self.layout.flatten(result)


class Linearized(HessianProduct):
    """``linearize(grad)`` once, applied again and again: about 2.1 gradients a product after seconds of tracing."""

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        super().__init__(risk, layout, batch)
        with warnings.catch_warnings():  # torch warns of its own tracing
            warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
            traced = linearize(grad(self._loss), risk.parameters)[1]
        self._apply: Callable[[dict[str, Tensor]], dict[str, Tensor]] = traced

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""
        with torch.no_grad():
            return self.layout.flatten(self._apply(self.layout.unflatten(v)))


class Compiled(Linearized):
    """The linearized product through ``torch.compile``: fewest operations; takes seconds and a C++ compiler."""

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        super().__init__(risk, layout, batch)
        self._apply = torch.compile(self._apply)


def gradient_graph(
    loss: Callable[[dict[str, Tensor]], Tensor], risk: EmpiricalRisk
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return fresh leaves and the gradient of ``loss`` by them, with its graph.

    Raises:
        ValueError: the loss does not depend on any of the parameters.
    """
    theta = {name: tensor.clone().requires_grad_() for name, tensor in risk.parameters.items()}
    with torch.enable_grad():
        value = loss(theta)
        if not value.requires_grad:
            raise ValueError(
                "the loss must depend on the selected parameters; no graph reaches them: look for .detach(), "
                ".item() or no_grad in the model or the loss, or choose others with params="
            )
        gradient = torch.autograd.grad(
            value, list(theta.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
    return theta, list(gradient)


def second_backward(
    theta: dict[str, Tensor], gradient: list[Tensor], layout: ParameterLayout, v: Tensor, *, retain: bool
) -> Tensor:
    """Return the derivative of gradient'v, (n,)."""
    tangent = layout.unflatten(v)
    pairs = [(g, tangent[name]) for g, name in zip(gradient, theta, strict=True) if g.requires_grad]
    if not pairs:  # the loss is linear in the parameters
        return torch.zeros_like(v)
    outputs, weights = zip(*pairs, strict=True)
    with sdpa_kernel(SDPBackend.MATH):
        result = torch.autograd.grad(
            outputs,
            list(theta.values()),
            grad_outputs=weights,
            retain_graph=retain,
            allow_unused=True,
            materialize_grads=True,
        )
    return layout.flatten(dict(zip(theta, result, strict=True)))


def checked_loss(loss: Tensor) -> Tensor:
    """Return the loss, if it is one.

    Raises:
        ValueError: it is not a scalar.
    """
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss must be a scalar tensor, the mean over the batch; got {shape}: take its mean")
    return loss
