"""Three Fisher matrices of a classifier that are never to be confused: exact, Monte Carlo, empirical."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from normlens.curvature.gauss_newton import GaussNewtonOperator, OutputMatrix
from normlens.curvature.product import UNREACHED, checked_finite, checked_loss
from normlens.risk import EmpiricalRisk
from normlens.typing import Batch

__all__ = ["empirical_fisher", "fisher"]


class _Categorical(OutputMatrix):
    r"""S = (diag p - p p')/N, p the softmax over the classes: the expectation over the model's own labels."""

    def __init__(self, risk: EmpiricalRisk, batch: Batch, outputs: Tensor) -> None:
        super().__init__(risk, batch, outputs)
        if outputs.ndim < 2 or outputs.shape[1] < 2:
            raise ValueError(f"the Fisher matrix needs logits of shape (N, classes, …); got {tuple(outputs.shape)}")
        self.p = outputs.softmax(1)
        self.n = outputs.numel() // outputs.shape[1]

    def __call__(self, u: Tensor) -> Tensor:
        """Return S u."""
        return self.p * (u - (self.p * u).sum(1, keepdim=True)) / self.n


class _Sampled(_Categorical):
    """S = r r'/N per sample, averaged over labels drawn from the model: r = p - onehot(label)."""

    def __init__(
        self, risk: EmpiricalRisk, batch: Batch, outputs: Tensor, *, samples: int, generator: torch.Generator
    ) -> None:
        super().__init__(risk, batch, outputs)
        rows = self.p.movedim(1, -1).reshape(-1, self.p.shape[1])
        labels = torch.multinomial(rows.cpu(), samples, replacement=True, generator=generator).to(rows.device)
        shape = (*self.p.movedim(1, -1).shape[:-1],)
        self.residuals = [
            self.p - torch.nn.functional.one_hot(labels[:, i].reshape(shape), self.p.shape[1]).movedim(-1, 1)
            for i in range(samples)
        ]

    def __call__(self, u: Tensor) -> Tensor:
        """Return S u."""
        terms = [r * (r * u).sum(1, keepdim=True) for r in self.residuals]
        return torch.stack(terms).mean(0) / self.n


class _Observed(OutputMatrix):
    """S = r r'/N per sample, r the gradient of that sample's own loss by its outputs, at the labels of the data."""

    def __init__(self, risk: EmpiricalRisk, batch: Batch, outputs: Tensor) -> None:
        super().__init__(risk, batch, outputs)
        leaf = outputs.clone().requires_grad_()
        with torch.enable_grad():
            loss = checked_finite(checked_loss(risk.output_loss(leaf, batch)))
            if not loss.requires_grad:
                raise ValueError(f"the loss must depend on the outputs; {UNREACHED}")
            (gradient,) = torch.autograd.grad(loss, leaf)
        self.n = outputs.numel() // outputs.shape[1] if outputs.ndim > 1 else len(outputs)
        self.r = gradient * self.n  # the loss is a mean: undo its 1/N

    def __call__(self, u: Tensor) -> Tensor:
        """Return S u."""
        inner = (self.r * u).sum(1, keepdim=True) if u.ndim > 1 else self.r * u
        return self.r * inner / self.n


def fisher(
    risk: EmpiricalRisk,
    kind: Literal["exact", "mc"] = "exact",
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> GaussNewtonOperator:
    r"""Return the Fisher information of a softmax classifier, labels drawn from the model itself.

    .. math:: F = \frac1N \sum_n E_{y \sim p_\theta(\cdot|x_n)} [g_n(y) g_n(y)^\top], \quad
       g_n(y) = \nabla_\theta \log p_\theta(y|x_n)

    "exact" takes the expectation in closed form (and equals the Gauss-Newton matrix of the cross-entropy); "mc" draws
    ``samples`` labels for each input, once for all products of the operator.

    Args:
        risk: its model must return logits (N, classes, …); the loss is not used.
        kind: "exact" or "mc".
        samples: labels per input, for "mc".
        generator: draws them (on the CPU); None for one with seed 0.

    Raises:
        ValueError: another kind, or outputs that are no logits.
    """
    if kind == "exact":
        return GaussNewtonOperator(risk, _Categorical)
    if kind != "mc":
        raise ValueError(f"kind must be 'exact' or 'mc'; got {kind!r} (the data's own labels: empirical_fisher)")
    own = generator if generator is not None else torch.Generator().manual_seed(0)
    return GaussNewtonOperator(risk, partial(_Sampled, samples=samples, generator=own))


def empirical_fisher(risk: EmpiricalRisk) -> GaussNewtonOperator:
    r"""Return :math:`\frac1N\sum_n \nabla\ell_n \nabla\ell_n^\top`, the gradients taken at the data's own labels.

    Not an approximation of the Fisher matrix away from a good fit (Kunstner, Balles & Hennig 2019). The loss must be
    a mean over samples (and positions) of terms that depend on their own outputs alone.

    Args:
        risk: model, loss, data and mode.
    """
    return GaussNewtonOperator(risk, _Observed)
