"""gauss_newton(risk): J'SJ, the part of the Hessian that is positive semidefinite for a convex loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from normlens.curvature.layout import ParameterLayout
from normlens.curvature.operator import LinearOperator
from normlens.curvature.product import UNREACHED, checked_finite, checked_loss, sized_batches
from normlens.risk import EmpiricalRisk
from normlens.typing import Batch

__all__ = ["GaussNewtonOperator", "OutputMatrix", "gauss_newton"]


class OutputMatrix(ABC):
    """The matrix S between the Jacobians, at the outputs of one batch.

    Args:
        risk: knows the loss.
        batch: knows the targets.
        outputs: (N, …), detached.
    """

    def __init__(self, risk: EmpiricalRisk, batch: Batch, outputs: Tensor) -> None:
        self.risk, self.batch, self.outputs = risk, batch, outputs

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """Return S u for a tensor of the outputs' shape."""


MakeMatrix = Callable[[EmpiricalRisk, Batch, Tensor], OutputMatrix]


class LossHessian(OutputMatrix):
    """S = the Hessian of the batch's loss by its outputs."""

    def __init__(self, risk: EmpiricalRisk, batch: Batch, outputs: Tensor) -> None:
        super().__init__(risk, batch, outputs)
        self._leaf = outputs.clone().requires_grad_()
        with torch.enable_grad():
            loss = checked_finite(checked_loss(risk.output_loss(self._leaf, batch)))
            if not loss.requires_grad:
                raise ValueError(f"the loss must depend on the outputs; {UNREACHED}")
            (self._gradient,) = torch.autograd.grad(loss, self._leaf, create_graph=True)

    def __call__(self, u: Tensor) -> Tensor:
        """Return S u by a second backward pass; zero for a loss that is linear in the outputs."""
        if not self._gradient.requires_grad:
            return torch.zeros_like(u)
        (result,) = torch.autograd.grad(self._gradient, self._leaf, u, retain_graph=True, materialize_grads=True)
        return result


class _BatchProduct:
    """v -> J'SJ v for one batch, on graphs that are kept: J v by differentiating J'w by w, then S, then J'."""

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch, matrix: MakeMatrix) -> None:
        self._layout = layout
        self._theta = {name: tensor.clone().requires_grad_() for name, tensor in risk.parameters.items()}
        leaves = list(self._theta.values())
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._outputs = _checked_outputs(risk.batch_outputs(self._theta, batch))
            self._w = torch.zeros_like(self._outputs, requires_grad=True)
            self._pulled = torch.autograd.grad(
                self._outputs, leaves, self._w, create_graph=True, allow_unused=True, materialize_grads=True
            )
        self._matrix = matrix(risk, batch, self._outputs.detach())

    def __call__(self, v: Tensor) -> Tensor:
        tangent = self._layout.unflatten(v)
        pairs = [(g, tangent[name]) for g, name in zip(self._pulled, self._theta, strict=True) if g.requires_grad]
        outputs, weights = zip(*pairs, strict=True)
        with sdpa_kernel(SDPBackend.MATH):
            (pushed,) = torch.autograd.grad(outputs, self._w, weights, retain_graph=True)
            pulled = torch.autograd.grad(
                self._outputs,
                list(self._theta.values()),
                self._matrix(pushed),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return self._layout.flatten(dict(zip(self._theta, pulled, strict=True)))


class GaussNewtonOperator(LinearOperator):
    """J'SJ over the batches of a risk, each weighted by its number of samples.

    Args:
        risk: model, loss, data and mode.
        matrix: what S is.

    Attributes:
        layout: where each parameter stands in a vector.
        mode: how the model stood: "train", "eval" or "mixed".
    """

    def __init__(self, risk: EmpiricalRisk, matrix: MakeMatrix) -> None:
        self.layout, self.mode = ParameterLayout(risk), risk.mode
        super().__init__(self.layout.n, self.layout.dtype, self.layout.device)
        self._risk, (batches, total) = risk, sized_batches(risk)
        self._products = [(_BatchProduct(risk, self.layout, batch, matrix), size / total) for batch, size in batches]

    def matvec(self, v: Tensor) -> Tensor:
        """Return J'SJ v."""
        return self._risk.summed(torch.stack([weight * part(v) for part, weight in self._products]).sum(0))


def gauss_newton(risk: EmpiricalRisk) -> GaussNewtonOperator:
    r"""Return the generalized Gauss-Newton matrix :math:`J^\top S J`, S the Hessian of the loss by the outputs.

    Positive semidefinite wherever the loss is convex in the outputs. With train-mode batch norm J is the Jacobian of
    all outputs of a batch together, through the batch statistics.

    Args:
        risk: model, loss, data and mode; the model must return one tensor.

    Raises:
        ValueError: no trainable parameters, no data, outputs that are no single finite tensor of the parameters, or a
            loss of them that is not scalar or not finite.
    """
    return GaussNewtonOperator(risk, LossHessian)


def _checked_outputs(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"a Gauss-Newton matrix needs a model that returns one tensor; got {type(outputs).__name__}: "
            "pass forward= to pick it"
        )
    if not outputs.requires_grad:
        raise ValueError(f"the outputs must depend on the selected parameters; {UNREACHED}")
    if bool((outputs.isnan() | outputs.isposinf()).any()):  # -inf is what a mask leaves
        raise ValueError(
            "the outputs must be finite; some are nan or inf: there is no curvature where the model diverged"
        )
    return outputs
