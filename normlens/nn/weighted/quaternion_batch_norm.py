"""Quaternion batch normalization: the four components of every channel whitened, or scaled alike."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.nn.running import averaging_factor
from normlens.nn.weighted.base import Weighted, check_sizes

__all__ = ["QuaternionBatchNorm", "QuaternionMode"]

QuaternionMode = Literal["whiten", "scalar"]


class QuaternionBatchNorm(Weighted):
    """Normalize every quaternion channel over batch and space by its 4 x 4 covariance, or by its mean square modulus.

    ``y = Gamma L^-1 (x - mean) + bias`` with ``L L^T = cov + eps I`` (Cholesky) in mode "whiten": before the symmetric
    ``Gamma`` the components have unit covariance. In mode "scalar" ``y = gamma (x - mean) / sqrt(E|x - mean|^2 + eps) +
    bias``, which keeps directions and commutes with the multiplication by a unit quaternion where ``bias`` is 0. Train
    mode takes the biased statistics of the batch and moves the running ones, with the unbiased, that eval mode takes.

    ``weight`` holds the ten numbers of ``Gamma`` on and below the diagonal, row by row, for each quaternion channel;
    the diagonal starts at 1/2, so that ``E|y|^2 = 1`` in both modes. In mode "scalar" it is ``gamma``, which starts at
    1.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank, ``C`` real channels in four blocks r, i, j, k;
    ``weight`` ``(C / 4, 10)`` or ``(C / 4,)``, ``bias`` ``(C,)``, ``running_mean`` ``(C,)``, ``running_cov`` ``(C / 4,
    4, 4)`` or ``running_var`` ``(C / 4,)``. The output is dimensionless before ``weight`` and ``bias``.

    Valid in train mode from five values per channel on ("whiten", where fewer leave the covariance singular) or two. A
    whitening by ``L^-1`` depends on the order of the components: unlike "scalar" it does not commute with rotations.

    Source: Gaudet and Maida, Deep Quaternion Networks, IJCNN 2018. Their published code multiplies by a symmetric
    matrix filled from ``L`` itself, not its inverse: variances of (4, 1, 1, 1) become (16, 1, 1, 1). The scalar mode is
    that of the quaternion networks of Parcollet et al.

    Args:
        num_features: ``C``, the real channels at dimension 1, a multiple of 4.
        eps: added to the variances.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether there are ``weight`` and ``bias``.
        mode: "whiten" or "scalar".
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``num_features`` is no positive multiple of 4, another ``mode``, a negative ``eps``, a wrong input,
            or too few values per channel where the batch's statistics are used.
    """

    sensitivity: ClassVar[float] = 10.0  # a division by a standard deviation, and the solution of a linear system
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_cov: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-4,
        momentum: float | None = 0.1,
        affine: bool = True,
        mode: QuaternionMode = "whiten",
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(QuaternionBatchNorm, {"num_features": num_features})
        _check_settings(num_features, eps, mode)
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.mode, self.track_running_stats = mode, track_running_stats
        whiten, quaternions = mode == "whiten", num_features // 4

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        gains = empty(quaternions, 10) if whiten else empty(quaternions)
        self.register_parameter("weight", nn.Parameter(gains) if affine else None)
        self.register_parameter("bias", nn.Parameter(empty(num_features)) if affine else None)
        count = torch.zeros((), device=device, dtype=torch.long)
        tracked = track_running_stats
        self.register_buffer("running_mean", empty(num_features) if tracked else None)
        self.register_buffer("running_cov", empty(quaternions, 4, 4) if tracked and whiten else None)
        self.register_buffer("running_var", empty(quaternions) if tracked and not whiten else None)
        self.register_buffer("num_batches_tracked", count if tracked else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set ``weight`` and ``bias`` to where they start, and forget all batches."""
        if self.weight is not None and self.bias is not None:
            start = 0.5 * torch.eye(4)[*_lower()] if self.mode == "whiten" else torch.tensor(1.0)
            self.weight.copy_(start.expand(self.weight.shape))
            self.bias.zero_()
        self.reset_running_stats()

    @torch.no_grad()
    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, covariance ``I / 2`` (or mean square modulus 2), count 0."""
        for buffer in (self.running_mean, self.num_batches_tracked):
            if buffer is not None:
                buffer.zero_()
        if self.running_cov is not None:
            self.running_cov.copy_(0.5 * torch.eye(4).expand(self.running_cov.shape))
        if self.running_var is not None:
            self.running_var.fill_(2.0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move."""
        self._check(x)
        with torch.autocast(x.device.type, enabled=False):  # it would take the covariance in half precision
            wide = promote(x)
            q = _quaternions(wide)
            if self.training or self.running_mean is None:
                mean = q.mean(-1, keepdim=True)
                spread = self._spread(q - mean)
                self._remember(mean, spread, q.shape[-1])
            else:
                mean = self.running_mean.to(wide.dtype).reshape(4, -1, 1).transpose(0, 1)
                stored = self.running_cov if self.running_cov is not None else self.running_var
                assert stored is not None
                spread = stored.to(wide.dtype)
            y = self._affine(self._normalized(q - mean, spread))
            return _channels(y, x).to(x.dtype).contiguous()

    def _check(self, x: Tensor) -> None:
        axes = ("N", "num_features", *(f"space{i}" for i in range(x.dim() - 2)))
        self.check_input(x, axes, dim=1, size=self.num_features)
        count, least = x.numel() // self.num_features, 5 if self.mode == "whiten" else 2
        if count < least and (self.training or self.running_mean is None):
            raise ValueError(
                f"QuaternionBatchNorm({self.num_features}, mode={self.mode!r}) needs at least {least} values per "
                f"channel; got {tuple(x.shape)}, {count} per channel; use a larger batch, or running statistics "
                "(track_running_stats=True and .eval())"
            )

    def _spread(self, centered: Tensor) -> Tensor:
        if self.mode == "scalar":
            return centered.square().mean(-1).sum(-1)
        return centered @ centered.mT / centered.shape[-1]

    def _normalized(self, centered: Tensor, spread: Tensor) -> Tensor:
        if self.mode == "scalar":
            return centered / (spread + self.eps).sqrt()[:, None, None]
        eye = torch.eye(4, device=spread.device, dtype=spread.dtype)
        factor = torch.linalg.cholesky(spread + self.eps * eye)
        whitened: Tensor = torch.linalg.solve_triangular(factor, centered, upper=False)
        return whitened

    def _affine(self, normalized: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return normalized
        weight, bias = (p.to(normalized.dtype) for p in (self.weight, self.bias))
        gain = _symmetric(weight) @ normalized if self.mode == "whiten" else weight[:, None, None] * normalized
        return gain + bias.reshape(4, -1, 1).transpose(0, 1)

    @torch.no_grad()
    def _remember(self, mean: Tensor, spread: Tensor, count: int) -> None:
        stored = self.running_cov if self.running_cov is not None else self.running_var
        if self.running_mean is None or self.num_batches_tracked is None or stored is None:
            return
        self.num_batches_tracked.add_(1)
        factor = averaging_factor(self.momentum, self.num_batches_tracked)
        unbiased = spread * (count / (count - 1))
        for buffer, new in ((self.running_mean, mean.transpose(0, 1).flatten()), (stored, unbiased)):
            buffer.copy_((1 - factor) * buffer + factor * new.detach())


def _check_settings(num_features: int, eps: float, mode: QuaternionMode) -> None:
    if num_features % 4:
        raise ValueError(
            f"QuaternionBatchNorm needs num_features that four divides, the blocks r, i, j, k; got {num_features}; "
            "count all four components"
        )
    if mode not in get_args(QuaternionMode):
        raise ValueError(f"QuaternionBatchNorm needs mode to be 'whiten' or 'scalar'; got {mode!r}; choose one")
    if not eps >= 0:
        raise ValueError(f"QuaternionBatchNorm needs eps of at least 0; got {eps}; use 1e-4")


def _quaternions(x: Tensor) -> Tensor:
    """Lay ``(N, C, *spatial)`` out as ``(C / 4, 4, M)``: the components of each quaternion channel together."""
    return x.reshape(x.shape[0], 4, -1, *x.shape[2:]).movedim(0, 2).flatten(2).transpose(0, 1)


def _channels(q: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`_quaternions`."""
    return q.transpose(0, 1).reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


def _lower() -> tuple[list[int], list[int]]:
    """Rows and columns of the ten places on and below the diagonal, row by row."""
    places = [(row, column) for row in range(4) for column in range(row + 1)]
    return [row for row, _ in places], [column for _, column in places]


def _symmetric(weight: Tensor) -> Tensor:
    """Fill ``(Q, 10)`` into symmetric matrices ``(Q, 4, 4)``."""
    place = {at: number for number, at in enumerate(zip(*_lower(), strict=True))}
    order = [place[max(row, column), min(row, column)] for row in range(4) for column in range(4)]
    return weight[:, order].reshape(-1, 4, 4)
