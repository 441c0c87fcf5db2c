"""The ways to form a product H v of the Hessian of one batch's loss.

Right through every native normalization kernel are double backward, ``jvp(grad)`` and ``linearize(grad)``; they are
all that is here. ``jvp(jacrev)``, ``grad(jvp)`` and ``jvp(jvp)`` are silently wrong through several and never used.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, linearize
from torch.nn.attention import SDPBackend, sdpa_kernel

from normlens.batch import batch_size
from normlens.curvature.layout import ParameterLayout
from normlens.random_state import preserved_random_state
from normlens.risk import EmpiricalRisk
from normlens.typing import Batch

__all__ = [
    "UNREACHED",
    "Compiled",
    "ForwardOverReverse",
    "HessianProduct",
    "Linearized",
    "RecomputedGraph",
    "RetainedGraph",
    "SecondDerivativeError",
    "check_risk",
    "checked_finite",
    "checked_loss",
    "node_names",
    "sized_batches",
]

UNREACHED = "no graph reaches them: look for .detach(), .item() or no_grad, or choose others with params="


class SecondDerivativeError(RuntimeError):
    """An operation of the model has no second derivative."""


class HessianProduct(ABC):
    """v -> H v for the loss of one batch, with flat vectors.

    Args:
        risk: model, loss and mode.
        layout: the order of the parameters.
        batch: the batch.
    """

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        self.risk, self.layout, self.batch = risk, layout, batch

    @property
    def error(self) -> float:
        """The relative error that this way adds to the rounding of the dtype; zero for derivatives."""
        return 0.0

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

    def nodes(self) -> list[str]:
        """Return the names of the operations of the gradient's graph."""
        return node_names(self._gradient)


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
    """``linearize(grad)`` once, applied again and again: about 2.2 gradients a product after seconds of tracing.

    Holds every tensor that the product needs, about four times the memory of the retained graph.
    """

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        super().__init__(risk, layout, batch)
        self._apply: Callable[[Tensor], Tensor] = self._traced()

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v; random operations stay in what torch traced, and draw the model's masks again."""
        with torch.no_grad(), preserved_random_state(self.risk.seed):
            return self._apply(v)

    def _traced(self) -> Callable[[Tensor], Tensor]:
        with warnings.catch_warnings():  # torch warns of its own tracing
            warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
            linear = linearize(grad(self._loss), self.risk.parameters)[1]
        layout = self.layout

        def flat(v: Tensor) -> Tensor:
            return layout.flatten(linear(layout.unflatten(v)))

        # Dynamo compiles one code object eight times and then runs eagerly, without a word: each batch has its own.
        return FunctionType(flat.__code__.replace(), flat.__globals__, "flat", None, flat.__closure__)


class Compiled(Linearized):
    """The linearized product through ``torch.compile``: about 1.8 gradients; takes seconds and a C++ compiler."""

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        super().__init__(risk, layout, batch)
        self(torch.zeros(layout.n, dtype=layout.dtype, device=layout.device))  # folds
        self._apply = torch.compile(self._apply, options={"fallback_random": True})  # the masks of the eager model
        self(torch.zeros(layout.n, dtype=layout.dtype, device=layout.device))  # compiles


def gradient_graph(
    loss: Callable[[dict[str, Tensor]], Tensor], risk: EmpiricalRisk
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return fresh leaves and the gradient of ``loss`` by them, with its graph.

    Raises:
        ValueError: the loss does not depend on any of the parameters.
        SecondDerivativeError: an operation is marked as once differentiable.
    """
    theta = {name: tensor.clone().requires_grad_() for name, tensor in risk.parameters.items()}
    with torch.enable_grad():
        value = loss(theta)
        if not value.requires_grad:
            raise ValueError(f"the loss must depend on the selected parameters; {UNREACHED}")
        gradient = torch.autograd.grad(
            value, list(theta.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
    if "torch::autograd::Error" in node_names(gradient):
        raise SecondDerivativeError(
            "double backward needs operations that can be differentiated twice; one is marked once_differentiable, "
            "and autograd.grad would leave out what lies behind it: take that off if its backward is differentiable, "
            "or use product=CentralDifference"
        )
    return theta, list(gradient)


def node_names(outputs: Iterable[Tensor]) -> list[str]:
    """Return the names of all operations of the graph behind some tensors."""
    seen: set[Any] = set()
    names: list[str] = []
    waiting = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.append(node.name())
            waiting += [following for following, _ in node.next_functions]
    return names


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


def sized_batches(risk: EmpiricalRisk) -> tuple[list[tuple[Batch, int]], int]:
    """Return the batches with their numbers of samples, and the number of all samples on all ranks.

    Raises:
        ValueError: there are none.
    """
    batches = [(batch, batch_size(batch)) for batch in risk.batches()]
    total = risk.count(sum(size for _, size in batches))
    if not total:
        raise ValueError("the data must hold at least one sample; got none (an exhausted iterator? pass a list)")
    return batches, total


def check_risk(risk: EmpiricalRisk, batches: list[tuple[Batch, int]], total: int) -> None:
    """Look at the loss, once, before anything is made of its derivatives.

    Raises:
        ValueError: it is not scalar, not finite, or no function of the selected parameters.
    """
    theta = {name: tensor.clone().requires_grad_() for name, tensor in risk.parameters.items()}
    mean, reached = next(iter(theta.values())).detach().new_zeros(()), not batches
    for batch, size in batches:
        with torch.enable_grad():
            loss = checked_loss(risk.batch_loss(theta, batch))
        mean, reached = mean + loss.detach() * (size / total), reached or loss.requires_grad
    if not reached:
        raise ValueError(f"the loss must depend on the selected parameters; {UNREACHED}")
    checked_finite(risk.summed(mean))


def checked_finite(loss: Tensor) -> Tensor:
    """Return the loss, if it is finite.

    Raises:
        ValueError: it is not.
    """
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"the loss must be finite; it is {float(loss.detach())}: there is no curvature where it diverged"
        )
    return loss
