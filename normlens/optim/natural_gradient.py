"""Natural gradient: the gradient in the metric of the model's own distribution, solved densely for small models."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.optim.output_metric import empirical_metric, exact_metric, ggn_metric
from normlens.optim.transform import Transform, owned_parameters
from normlens.risk import EmpiricalRisk, eager_module
from normlens.typing import Loss

__all__ = ["NaturalGradient"]

_Fisher: TypeAlias = Literal["exact", "empirical", "ggn"]

_METRICS = {"exact": exact_metric, "empirical": empirical_metric, "ggn": ggn_metric}
_ROWS = 256  # of the Jacobian at a time, to bound the memory


class NaturalGradient(Transform):
    r"""Multiply the gradient by the inverse Fisher matrix of the batch before the optimizer steps.

    .. math:: g \leftarrow (F + \lambda I)^{-1} g, \qquad F = \sum_n J_n^\top S_n J_n, \quad J_n = \partial f_n /
        \partial\theta

    over the parameters that have a gradient, all in one dense matrix. ``S_n`` is, with ``1/N``: for "exact" the Fisher
    matrix of the model's distribution over outputs, of a softmax classifier (integer targets, ``cross_entropy``) or of
    a Gaussian whose negative log likelihood is ``mse_loss``; for "ggn" the Hessian of any loss by the outputs
    (generalized Gauss-Newton); for "empirical" the outer product of the loss's gradient at the data's own labels, which
    is no Fisher matrix and keeps the name apart. Call ``observe(inputs, targets)`` with the batch before each
    ``optimizer.step()``; with ``torch.optim.SGD(lr=eta)`` the step is ``-eta F^{-1} g``. The batch is evaluated once
    more with the model as it stands; buffers and random states are left alone.

    Without damping the step does not depend on how the parameters are written: it is the same function for ``theta``
    and for ``theta = A phi``. Units: those of the parameters. Without state of its own.
    Valid for outputs ``(N, C)`` or ``(N,)`` and a loss that is a mean over samples, each of its own output.

    Source: S. Amari, Natural gradient works efficiently in learning, Neural Computation 10(2), 1998.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of its parameters.
        loss: ``loss(outputs, targets)``, the mean over the batch that is trained on.
        fisher: "exact", "empirical" or "ggn".
        damping: ``lambda``, in the units of ``F``; 0 needs a positive definite ``F``.
        largest: how many parameters at most; the cost is their cube, the memory their square.

    Raises:
        ValueError: too many parameters, settings out of range, a step without ``observe``, outputs, targets or a loss
            that the matrix is not defined for, or a matrix that is singular.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        fisher: _Fisher = "exact",
        damping: float = 1e-3,
        largest: int = 5000,
    ) -> None:
        if fisher not in _METRICS:
            raise ValueError(f"NaturalGradient needs fisher 'exact', 'empirical' or 'ggn'; got {fisher!r}; choose one")
        if not damping >= 0:
            raise ValueError(f"NaturalGradient needs a damping of at least 0; got {damping}; the default is 1e-3")
        count = sum(parameter.numel() for parameter in owned_parameters(model, optimizer).values())
        if count > largest:
            raise ValueError(
                f"NaturalGradient needs at most {largest} parameters, for it solves with a dense matrix; got {count}; "
                "give the optimizer fewer, or raise largest if the memory and the time are there"
            )
        super().__init__(model, optimizer)
        self.loss, self.fisher, self.damping, self.largest = loss, fisher, damping, largest
        self._batch: tuple[Any, Any] | None = None

    def observe(self, inputs: Any, targets: Any) -> None:
        """Take the batch of the next step.

        Args:
            inputs: what the model is called with.
            targets: what the loss compares with.
        """
        self._batch = (inputs, targets)

    def before_step(self) -> None:
        """Solve for the natural gradient of the batch."""
        if self._batch is None:
            raise ValueError(
                "NaturalGradient needs the batch of every step; got none since the last one; call "
                "observe(inputs, targets) before optimizer.step()"
            )
        owned = owned_parameters(eager_module(self.model), self.optimizer)
        named = {name: parameter for name, parameter in owned.items() if parameter.grad is not None}
        if named:
            gradient = torch.cat([promote(p.grad).flatten() for p in named.values() if p.grad is not None])
            solved = self._solve(self.matrix(*self._batch, names=list(named)), gradient)
            for parameter in named.values():
                part, solved = solved[: parameter.numel()], solved[parameter.numel() :]
                parameter.grad.copy_(part.view_as(parameter))  # type: ignore[union-attr]  # chosen above
        self._batch = None

    def matrix(self, inputs: Any, targets: Any, *, names: list[str] | None = None) -> Tensor:
        """Return ``F`` on a batch, without damping, (P, P).

        Args:
            inputs: what the model is called with.
            targets: what the loss compares with.
            names: of the parameters, in the order of ``named_parameters``; None for all the optimizer steps.

        Raises:
            ValueError: outputs, targets or a loss that the matrix is not defined for.
        """
        chosen = names or list(owned_parameters(eager_module(self.model), self.optimizer))
        batch = (inputs, targets)
        risk = EmpiricalRisk(self.model, self.loss, batch, params=lambda name, _: name in chosen)
        theta = {name: tensor.clone().requires_grad_() for name, tensor in risk.parameters.items()}
        with torch.enable_grad():
            outputs = risk.batch_outputs(theta, batch)
            _check_outputs(outputs)
            metric = _METRICS[self.fisher](outputs.detach(), targets, self.loss)
            return _pulled_back(outputs, list(theta.values()), promote(metric))

    def _solve(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        matrix.diagonal().add_(self.damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            raise ValueError(
                f"NaturalGradient needs a positive definite matrix; got a singular one with damping={self.damping}; "
                "raise the damping, or take more samples"
            )
        return torch.cholesky_solve(gradient[:, None], factor)[:, 0]


def _check_outputs(outputs: Any) -> None:
    if not isinstance(outputs, Tensor) or outputs.dim() not in (1, 2) or not outputs.requires_grad:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"NaturalGradient needs outputs (N, C) or (N,) that depend on the parameters; got {got}; "
            "flatten them in the model"
        )


def _pulled_back(outputs: Tensor, leaves: list[Tensor], metric: Tensor) -> Tensor:
    """Return the sum of J_n' S_n J_n, some samples at a time."""
    samples, width = metric.shape[:2]
    count = sum(leaf.numel() for leaf in leaves)
    total = metric.new_zeros(count, count)
    some_samples = max(1, _ROWS // width)
    for first in range(0, samples, some_samples):
        some = torch.arange(first, min(samples, first + some_samples), device=metric.device)
        jacobian = promote(_jacobian(outputs, leaves, some, width))
        total += jacobian.T @ (metric[some] @ jacobian.view(len(some), width, -1)).flatten(0, 1)
    return total


def _jacobian(outputs: Tensor, leaves: list[Tensor], samples: Tensor, width: int) -> Tensor:
    """Return the derivatives of some samples' outputs by all parameters, (samples * width, P)."""
    rows = (samples[:, None] * width + torch.arange(width, device=samples.device)).flatten()
    basis = nn.functional.one_hot(rows, outputs.numel()).to(outputs.dtype).view(len(rows), *outputs.shape)
    parts = torch.autograd.grad(
        outputs, leaves, basis, retain_graph=True, is_grads_batched=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten(1) for part in parts], 1)
