"""Mixture normalization: each value standardized by the components of a mixture fitted to its batch."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from normlens.nn import em_mixture as em
from normlens.nn.base import RunningNormalization
from normlens.nn.functional import (
    Moments,
    affine,
    channel_matrix,
    from_channel_matrix,
    moments,
    promote,
)
from normlens.nn.mixture_standardization import standardize_by_components
from normlens.nn.running import update_running

__all__ = ["MixtureNorm"]

_Gmm = Literal["vector", "channel"]
_GradThrough = Literal["stats", "none", "all"]
_MOST_COMPONENTS = 6  # the running mixture is matched by trying every order, 720 of six


class MixtureNorm(RunningNormalization):
    """Standardize values by each component of a Gaussian mixture, add these up by responsibility, scale and shift.

    ``y = weight_c sum_k r_ik / sqrt(lambda_k) (x_ic - m_kc) / sqrt(s_kc^2 + eps) + bias_c``. In train mode EM fits a
    mixture of ``components`` with diagonal covariance to the batch, ``r_ik`` is the posterior of component ``k``, and
    ``lambda_k``, ``m_kc`` and the biased ``s_kc^2`` are its weight, mean and variance. In eval mode all of them come
    from the running mixture. ``gmm="vector"`` takes each position of each sample as one point of ``C`` dimensions,
    hence one posterior for all channels; ``"channel"`` fits a mixture to each channel by itself.

    After each batch in train mode ``running' = (1 - momentum) running + momentum batch`` for ``running_weight``,
    ``running_mean`` and ``running_var`` (all values' correction ``n / (n - 1)`` included), with the components of the
    batch in the order nearest to the running ones. A component that the batch does not have keeps mean and variance.

    One component is batch norm. Hard responsibilities make the variance of the output ``components``, not 1, hence
    ``rescale``. The map is neither monotone nor invertible: the components are laid over each other. A positive scale
    and a shift of each channel cancel, up to ``eps``.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; dimensionless before ``weight`` and ``bias``.
    ``running_mean`` and ``running_var`` are ``(components, C)``, ``running_weight`` is ``(components, 1)`` for
    ``"vector"`` and ``(components, C)`` for ``"channel"``.

    Valid in train mode from as many values per channel as components on, at least two. The backward pass takes the
    responsibilities and weights as constants and is the derivative through ``m`` and ``s`` (``grad_through="stats"``),
    takes all statistics as constants (``"none"``), or is the derivative of everything, each step of EM included
    (``"all"``, which keeps them all in memory). EM stops after a fixed number of steps, converged or not. Its variances
    are kept above ``1e-6`` of the channel's.

    Source: Kalayeh and Shah, TPAMI 2019, arXiv:1806.02892, section 3, from memory: it seeds EM by k-means++. Here it
    starts from soft slices across the longest axis, see :func:`normlens.nn.em_mixture.slices`: without randomness, and
    independent of the order of the batch. The paper does not fix what ``gmm`` and ``grad_through`` choose.

    Args:
        num_features: ``C``, the channels at dimension 1.
        components: ``K``, from 1 to 6.
        gmm: whether one mixture describes all channels or each channel has its own.
        grad_through: what the backward pass differentiates.
        iterations: EM steps per batch.
        min_weight: components of a smaller weight are dropped, below ``1 / components``.
        rescale: whether to divide by ``sqrt(components)`` before ``weight``.
        eps: added to the variances; with 0 a component of equal values becomes nan.
        momentum: weight of the newest batch in the running mixture; None averages all batches alike.
        affine: whether to scale and shift.
        track_running_stats: without a running mixture eval mode fits one to the batch too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: a setting out of its range, a wrong number of channels, or fewer values than components.

    Attributes:
        exact_gradient: False, since only ``grad_through="all"`` makes it so.
    """

    exact_gradient: ClassVar[bool] = False
    sensitivity: ClassVar[float] = 10.0
    running_weight: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        components: int = 3,
        gmm: _Gmm = "vector",
        grad_through: _GradThrough = "stats",
        iterations: int = 10,
        min_weight: float = 1e-3,
        rescale: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )
        self.components, self.gmm, self.grad_through = components, gmm, grad_through
        self.iterations, self.min_weight, self.rescale = iterations, min_weight, rescale
        self._check_settings()
        shared = torch.zeros(components, 1 if gmm == "vector" else num_features, device=device, dtype=dtype)
        self.register_buffer("running_weight", shared if track_running_stats else None)
        if track_running_stats:
            self.running_mean = torch.zeros(components, num_features, device=device, dtype=dtype)
            self.running_var = torch.zeros_like(self.running_mean)
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Forget all batches: equal weights, means 0, variances 1, count 0."""
        super().reset_running_stats()
        if self.running_weight is not None:
            self.running_weight.fill_(1 / self.components)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running mixture moves."""
        self.check_input(x)
        running = None if self.training else self._running()
        with torch.autocast(x.device.type, enabled=False):  # responsibilities are matrix products
            matrix = channel_matrix(promote(x))
            points = matrix.unsqueeze(0 if self.gmm == "vector" else 1)
            y = self._by_batch(points, x) if running is None else self._by_running(points, running)
            y = y / math.sqrt(self.components) if self.rescale else y
            return affine(from_channel_matrix(y.reshape(matrix.shape), x), self.weight, self.bias).to(x.dtype)

    def _by_batch(self, points: Tensor, x: Tensor) -> Tensor:
        self._check_count(points.shape[2], x)
        seen = points if self.grad_through == "all" else points.detach()
        center, var = moments(seen, (2,))
        centered = points - center  # the output does not depend on the center, only its rounding does
        scale = (var.clamp_min(torch.finfo(var.dtype).tiny) + self.eps).sqrt()  # a constant channel has no say in r
        unit = (centered if self.grad_through == "all" else centered.detach()) / scale
        r = em.fit_responsibilities(unit, self.components, iterations=self.iterations, min_weight=self.min_weight)
        y, fitted = self._standardize(centered, r)
        self._track(fitted, center.detach(), var.detach(), points.shape[2])
        return y

    def _standardize(self, centered: Tensor, r: Tensor) -> tuple[Tensor, em.Mixture]:
        """Return the output and the moments of the components, as constants."""
        if self.grad_through == "stats":
            return standardize_by_components(centered, r, self.eps)
        fitted = em.component_moments(centered.detach() if self.grad_through == "none" else centered, r)
        y = em.standardize_by_mixture(centered, r, fitted, self.eps)
        return y, em.Mixture(*(part.detach() for part in fitted))

    def _by_running(self, points: Tensor, running: em.Mixture) -> Tensor:
        mixture = em.prune(running, self.min_weight)
        center = (mixture.weight * mixture.mean).sum(1, keepdim=True)
        mixture = mixture._replace(mean=mixture.mean - center)
        var = (mixture.weight * (mixture.var + mixture.mean.square())).sum(1, keepdim=True)
        scale = (var + self.eps).sqrt()
        seen = points if self.grad_through == "all" else points.detach()
        unit = em.Mixture(mixture.weight, mixture.mean / scale, mixture.var / scale.square())
        r = em.posterior((seen - center.mT) / scale.mT, unit)
        return em.standardize_by_mixture(points - center.mT, r, mixture, self.eps)

    def _running(self) -> em.Mixture | None:
        """Return the running mixture as ``em_mixture`` shapes it, in at least float32; None where there is none."""
        kept = (self.running_weight, self.running_mean, self.running_var)
        if kept[0] is None or kept[1] is None or kept[2] is None:
            return None
        wide = (promote(part) for part in kept if part is not None)
        return em.Mixture(*(part.unsqueeze(0) if self.gmm == "vector" else part.mT.unsqueeze(2) for part in wide))

    @torch.no_grad()
    def _track(self, fitted: em.Mixture, center: Tensor, var: Tensor, count: int) -> None:
        """Move the running mixture toward ``fitted``, whose means are relative to ``center``."""
        running = self._running()
        if running is None:
            return
        unit = (var + self.eps).clamp_min(torch.finfo(var.dtype).tiny)
        batch = em.match(fitted._replace(mean=fitted.mean + center.mT), running, unit)
        factor = self.count_batch()
        moved = update_running(Moments(*running[1:]), Moments(*batch[1:]), count=count, factor=factor)
        alive = batch.weight > 0
        parts = (
            (self.running_weight, (1 - factor) * running.weight + factor * batch.weight),
            (self.running_mean, torch.where(alive, moved.mean, running.mean)),
            (self.running_var, torch.where(alive, moved.var, running.var)),
        )
        for buffer, new in parts:
            if buffer is not None:
                buffer.copy_(new.squeeze(0) if self.gmm == "vector" else new.squeeze(2).mT)

    def _check_count(self, count: int, x: Tensor) -> None:
        advice = "use a larger batch, or the running mixture (track_running_stats=True and .eval())"
        self.check_count(count, x, unit="channel", advice=advice)
        if count < self.components:
            raise ValueError(
                f"MixtureNorm({self.num_features}) needs as many values per channel as components to fit them; got "
                f"{tuple(x.shape)}, {count} per channel for components={self.components}; {advice}"
            )

    def _check_settings(self) -> None:
        if not 1 <= self.components <= _MOST_COMPONENTS:
            raise ValueError(
                f"MixtureNorm needs components from 1 to {_MOST_COMPONENTS}; got {self.components}; 1 is batch norm, "
                "3 and 5 are those of the paper"
            )
        for name, allowed in (("gmm", get_args(_Gmm)), ("grad_through", get_args(_GradThrough))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"MixtureNorm needs {name} to be one of {allowed}; got {getattr(self, name)!r}")
        if self.iterations < 1 or not 0 <= self.min_weight < 1 / self.components:
            raise ValueError(
                f"MixtureNorm needs iterations of at least 1 and min_weight from 0 to below 1 / components; got "
                f"iterations={self.iterations}, min_weight={self.min_weight}, components={self.components}; "
                "leave them out for 10 and 1e-3"
            )
