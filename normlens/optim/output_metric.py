"""Metrics on a model's outputs, one matrix per sample, from which the parameters' metric is pulled back."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.typing import Loss

__all__ = ["empirical_metric", "exact_metric", "ggn_metric"]


def exact_metric(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    r"""Return the Fisher matrix of the outputs' distribution over the model's own labels, ``1/N`` included.

    ``(diag p - p p') / N`` for the softmax ``p`` of a classifier (integer targets), ``2 / (N C)`` times the identity
    for the Gaussian whose negative log likelihood is ``mse_loss`` (targets like the outputs).

    Args:
        outputs: (N, C) or (N,), detached.
        targets: classes (N,), or numbers of the outputs' shape.
        loss: must be ``cross_entropy`` or ``mse_loss``, the negative log likelihood of these distributions.

    Raises:
        ValueError: other targets or another loss.
    """
    if outputs.dim() == 2 and not targets.is_floating_point() and targets.shape == outputs.shape[:1]:
        p = outputs.softmax(1)
        _check_loss(outputs, targets, loss, p - torch.nn.functional.one_hot(targets, p.shape[1]), scale=1 / len(p))
        return (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(p)
    if targets.is_floating_point() and targets.shape == outputs.shape:
        _check_loss(outputs, targets, loss, outputs - targets, scale=2 / outputs.numel())
        rows = outputs.reshape(len(outputs), -1)
        return torch.diag_embed(torch.full_like(rows, 2 / outputs.numel()))
    raise ValueError(
        "the exact Fisher matrix needs logits (N, C) with integer targets (N,), or targets like the outputs; got "
        f"outputs {tuple(outputs.shape)} and {targets.dtype} targets {tuple(targets.shape)}; use fisher='ggn'"
    )


def empirical_metric(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Return the outer product of each sample's gradient at the label of the data, ``1/N`` included.

    Args:
        outputs: (N, C) or (N,), detached.
        targets: what the loss compares with.
        loss: a mean over samples.
    """
    residual = len(outputs) * _gradient(outputs, targets, loss)[1].detach().reshape(len(outputs), -1)
    return residual[:, :, None] * residual[:, None, :] / len(outputs)


def ggn_metric(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Return the Hessian of the loss by each sample's outputs, ``1/N`` included.

    Args:
        outputs: (N, C) or (N,), detached.
        targets: what the loss compares with.
        loss: a mean over samples, each of its own output, twice differentiable.
    """
    leaf, gradient = _gradient(outputs, targets, loss)
    rows = gradient.reshape(len(outputs), -1)
    if not rows.requires_grad:  # linear in the outputs
        return torch.diag_embed(torch.zeros_like(rows))
    # Samples do not see each other's outputs, so that one backward pass has one row of every sample's matrix.
    hessian = [torch.autograd.grad(rows[:, j].sum(), leaf, retain_graph=True)[0] for j in range(rows.shape[1])]
    return torch.stack([row.reshape_as(rows) for row in hessian], 1)


def _gradient(outputs: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    leaf = outputs.clone().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf, targets)
        if not value.requires_grad:
            raise ValueError("the loss must depend on the outputs; got one that does not; do not detach them")
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    return leaf, gradient


def _check_loss(outputs: Tensor, targets: Tensor, loss: Loss, residual: Tensor, *, scale: float) -> None:
    """Refuse a loss whose gradient is not ``scale * residual``, up to the rounding of the outputs."""
    found = _gradient(outputs, targets, loss)[1].detach()
    rounding = torch.finfo(found.dtype).eps ** 0.5 * scale * max(1.0, float(outputs.abs().max()))
    if not torch.allclose(found, scale * residual, rtol=0, atol=rounding):
        raise ValueError(
            "the exact Fisher matrix needs the negative log likelihood that belongs to its distribution, "
            "torch's cross_entropy or mse_loss with their defaults; got another loss; use fisher='ggn'"
        )
