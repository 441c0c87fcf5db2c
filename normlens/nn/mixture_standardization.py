"""Points standardized by the moments of a mixture's components, given the responsibilities, with one backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlens.nn import em_mixture as em
from normlens.nn.forward_mode import has_tangent

__all__ = ["standardize_by_components"]


def standardize_by_components(points: Tensor, r: Tensor, eps: float) -> tuple[Tensor, em.Mixture]:
    """Return :func:`em_mixture.standardize_by_mixture` by the components' own moments, and these, as constants.

    The derivative by ``points`` goes through the moments; the responsibilities are constants. In every derivative
    mode the same as the composition, whose backward pass writes twice as many tensors of the size of ``points``.

    Args:
        points: ``(G, P, M)``.
        r: ``(G, K, M)``, without a gradient.
        eps: added to the variances.
    """
    plain = torch.compiler.is_compiling() or not (points.requires_grad and torch.is_grad_enabled())
    if plain or has_tangent(points, r):
        fitted = em.component_moments(points, r)
        return em.standardize_by_mixture(points, r, fitted, eps), em.Mixture(*(part.detach() for part in fitted))
    y, *fitted = _ByComponents.apply(points, r, eps)  # type: ignore[no-untyped-call]
    return y, em.Mixture(*fitted)


class _ByComponents(torch.autograd.Function):
    r"""With :math:`a_k = 1/\sqrt{\lambda_k (s_k^2 + \epsilon)}`: :math:`y_i = \sum_k r_{ik} a_k (x_i - m_k)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(points: Tensor, r: Tensor, eps: float) -> tuple[Tensor, ...]:
        fitted = em.component_moments(points, r)
        return em.standardize_by_mixture(points, r, fitted, eps), *fitted

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        points, r, ctx.eps = inputs
        ctx.save_for_backward(points, r, *output[1:])
        ctx.save_for_forward(points, r)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        points, r, *fitted = ctx.saved_tensors
        differentiated = torch.is_grad_enabled() or has_tangent(gradients[0], points)
        moments = em.component_moments(points, r) if differentiated else em.Mixture(*fitted)
        return _pulled_back(gradients[0], points, r, moments, ctx.eps), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None, None, None]:
        points, r = ctx.saved_tensors
        return _pushed_forward(tangents[0], points, r, em.component_moments(points, r), ctx.eps), None, None, None


def _pulled_back(g: Tensor, x: Tensor, r: Tensor, fitted: em.Mixture, eps: float) -> Tensor:
    r"""With :math:`G_k = \sum_i r_{ik} g_i`, :math:`H_k = \sum_i r_{ik} g_i x_i` and :math:`n_k = \sum_i r_{ik}`.

    The moments have the gradients :math:`-a_k G_k` and :math:`-\tfrac12 a_k (H_k - m_k G_k) / (s_k^2 + \epsilon)`, and
    take :math:`r_{ik}/n_k` and :math:`2 r_{ik} (x_i - m_k)/n_k` from each point.
    """
    gain, inverse = _gains(fitted, eps)
    count = (fitted.weight * x.shape[2]).clamp_min(torch.finfo(x.dtype).tiny)
    sums, weighted = r @ g.mT, r @ (g * x).mT
    by_variance = -gain * inverse * (weighted - fitted.mean * sums) / count
    by_mean = -gain * sums / count - by_variance * fitted.mean
    through_moments = torch.baddbmm(x * (by_variance.mT @ r), by_mean.mT, r)
    return torch.addcmul(through_moments, g, gain.mT @ r)


def _pushed_forward(t: Tensor, x: Tensor, r: Tensor, fitted: em.Mixture, eps: float) -> Tensor:
    gain, inverse = _gains(fitted, eps)
    share = r / (fitted.weight * x.shape[2]).clamp_min(torch.finfo(x.dtype).tiny)
    mean = share @ t.mT
    moved = -gain * inverse * (share @ (x * t).mT - fitted.mean * mean)
    shift = moved * fitted.mean + gain * mean
    return t * (gain.mT @ r) + x * (moved.mT @ r) - shift.mT @ r


def _gains(fitted: em.Mixture, eps: float) -> tuple[Tensor, Tensor]:
    """Return ``a_k`` and ``1 / (s_k^2 + eps)``, both finite for a dead component, which has no points."""
    alive = fitted.weight > 0
    variance = torch.where(alive, fitted.var + eps, 1.0)
    return (torch.where(alive, fitted.weight, 1.0) * variance).rsqrt(), variance.reciprocal()
