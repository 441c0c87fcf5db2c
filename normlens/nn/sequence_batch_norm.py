"""Sequence batch normalization: batch norm of sequences, frame by frame or over all frames, padding left out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import RunningNormalization
from normlens.nn.functional import Moments, affine, moments, promote, standardize
from normlens.nn.running import averaging_factor

__all__ = ["SequenceBatchNorm"]


class SequenceBatchNorm(RunningNormalization):
    """Standardize each channel over the batch and time, or over the batch at each time step apart.

    ``y = weight_c (x - mean) / sqrt(var + eps) + bias_c``. In mode ``"sequence"`` the statistics ``mean_c, var_c`` pool
    samples and frames, in mode ``"frame"`` each frame ``t`` has ``mean_ct, var_ct`` over the samples; further space is
    pooled in both. With ``lengths`` the frames from ``lengths[n]`` on are padding: they enter no statistic, whatever
    they hold, and come out as 0. Train mode uses the batch's statistics (biased variance) and moves the running ones
    (unbiased) by ``running' = (1 - momentum) running + momentum batch``; eval mode uses the running ones. Frames have
    running statistics of their own up to ``max_length``; later frames move none and are evaluated with the last ones.

    Shapes: ``(N, C, T, *spatial)`` to the same; ``(N, C)`` is one frame. Without lengths mode ``"sequence"`` is
    :class:`normlens.nn.BatchNorm`. The output is dimensionless before ``weight`` and ``bias``.

    Valid in train mode from two values per statistic on: of sequences that end one by one the last frames hold fewer,
    and mode ``"frame"`` refuses them. Mode ``"sequence"`` looks ahead: in train mode an output depends on later frames.

    Source: Laurent, Pereyra, Brakel, Zhang and Bengio, ICASSP 2016, arXiv:1510.01378, who normalize the input-to-hidden
    part ``W_x x_t`` of a recurrent network so.

    Args:
        num_features: ``C``, the channels at dimension 1.
        mode: ``"sequence"`` pools all frames, ``"frame"`` keeps them apart.
        max_length: how many frames have running statistics of their own; for mode ``"frame"`` alone.
        eps: added to the variance; with 0 a constant channel becomes 0 or nan, as PyTorch's kernel has it.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift, all frames alike.
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: an unknown mode, a ``max_length`` that does not fit it, a wrong number of channels, lengths that do
            not fit the input, or one value per statistic where the batch's statistics are used.
    """

    def __init__(
        self,
        num_features: int,
        *,
        mode: Literal["sequence", "frame"] = "sequence",
        max_length: int | None = None,
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
        _check_mode(mode, max_length, track_running_stats)
        self.mode, self.max_length = mode, max_length
        if max_length is not None and track_running_stats:
            mean = torch.zeros(max_length, num_features, device=device, dtype=dtype)
            self.running_mean, self.running_var = mean, torch.ones_like(mean)
            self.num_batches_tracked = torch.zeros(max_length, device=device, dtype=torch.long)

    def forward(self, x: Tensor, lengths: Tensor | None = None, *, first_step: int = 0) -> Tensor:
        """Normalize ``(N, C, T, *spatial)``; in train mode the running statistics move.

        Args:
            x: the sequences, padded to one length.
            lengths: ``(N,)`` integers from 0 to ``T``, how many frames of each sequence are no padding; None for all.
            first_step: which time step the first frame is, for a sequence that comes in pieces.

        Raises:
            ValueError: as the class says.
        """
        self.check_input(x)
        frames = x.unsqueeze(2) if x.dim() == 2 else x
        valid = None if lengths is None else self._valid(frames, lengths)
        if valid is not None:
            frames = torch.where(valid, frames, 0)  # not a product: padding may be nan
        if self.training or self.running_mean is None or self.running_var is None:
            counts = self._counts(x, frames, valid)
            if valid is None and len(counts) == 1:
                return self._with_kernel(x, first_step if self.mode == "frame" else 0)
            mean, var = self._of_batch(frames, valid, counts, first_step)
        else:
            mean, var = self._remembered(self.running_mean, self.running_var, frames, first_step)
        y = affine(standardize(frames, mean, var, self.eps), self.weight, self.bias).to(x.dtype)
        return (y if valid is None else torch.where(valid, y, 0)).reshape(x.shape)

    def _valid(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return True where a frame is no padding, ``(N, 1, T, 1, ...)``."""
        samples, steps = frames.shape[0], frames.shape[2]
        fits = tuple(lengths.shape) == (samples,) and not (lengths.is_floating_point() or lengths.is_complex())
        if not fits or (samples and not 0 <= int(lengths.min()) <= int(lengths.max()) <= steps):
            raise ValueError(
                f"SequenceBatchNorm({self.num_features}) needs lengths of shape ({samples},), integers from 0 to "
                f"{steps}; got {lengths.tolist()} for {tuple(frames.shape)}; count the frames that are no padding"
            )
        inside = torch.arange(steps, device=frames.device) < lengths.to(frames.device)[:, None]
        return inside.reshape(samples, 1, steps, *(1,) * (frames.dim() - 3))

    def _counts(self, x: Tensor, frames: Tensor, valid: Tensor | None) -> Tensor:
        """Count the values of each statistic, ``(T or 1,)``; where there is one alone, refuse the input."""
        rows = 1 if self.mode == "sequence" else frames.shape[2]
        if valid is None:
            fewest = frames.numel() // max(1, self.num_features * rows)
            counts = torch.full((rows,), fewest, device=frames.device)
        else:
            counts = valid.sum(self._pooled(frames)).reshape(rows) * frames.shape[3:].numel()
            fewest = int(counts.where(counts > 0, 2).min())  # what is padding alone needs no statistic
        unit = "channel" if self.mode == "sequence" else "channel and frame"
        advice = "use a larger batch, mode='sequence', or running statistics (track_running_stats=True and .eval())"
        self.check_count(fewest, x, unit=unit, advice=advice)
        return counts

    def _pooled(self, frames: Tensor) -> tuple[int, ...]:
        return (0, *range(2 if self.mode == "sequence" else 3, frames.dim()))

    def _with_kernel(self, x: Tensor, row: int) -> Tensor:
        """Normalize by one set of statistics in one fused operation, which moves row ``row`` of the running ones."""
        mean, var, factor = self.running_mean, self.running_var, 0.0
        batches = self.num_batches_tracked
        if mean is not None and var is not None and batches is not None:
            kept = row < batches.numel()
            factor = averaging_factor(self.momentum, batches.view(-1)[row].add_(1)) if kept else 0.0
            mean, var = (v.view(-1, self.num_features)[row] if kept else None for v in (mean, var))
        return native.batch_norm(x, mean, var, self.weight, self.bias, training=True, factor=factor, eps=self.eps)

    def _of_batch(self, frames: Tensor, valid: Tensor | None, counts: Tensor, first_step: int) -> Moments:
        """Take the batch's statistics, shaped ``(1, C, T or 1, 1, ...)``, and remember them."""
        dims = self._pooled(frames)
        batch = moments(frames, dims) if valid is None else _moments_of_valid(frames, valid, counts, dims)
        self._remember(batch, counts, first_step if self.mode == "frame" else 0)
        return batch

    @torch.no_grad()
    def _remember(self, batch: Moments, counts: Tensor, start: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        mean, var = (m.detach().reshape(self.num_features, -1).T for m in batch)
        batches = self.num_batches_tracked.view(-1)[start : start + len(counts)]
        kept = len(batches)  # fewer where the sequence is longer than max_length
        n = counts[:kept].to(mean.dtype).unsqueeze(1)
        batches.add_(counts[:kept] > 0)
        newest = self.momentum if self.momentum is not None else 1 / batches.to(mean.dtype).clamp(min=1).unsqueeze(1)
        factor = (n > 0).to(mean.dtype) * newest
        unbiased = var[:kept] * (n / (n - 1).clamp(min=1))
        for buffer, new in ((self.running_mean, mean[:kept]), (self.running_var, unbiased)):
            old = buffer.view(-1, self.num_features)[start : start + kept]
            old.copy_((1 - factor) * old + factor * new)

    def _remembered(self, mean: Tensor, var: Tensor, frames: Tensor, first_step: int) -> Moments:
        """Lay running statistics out as ``(1, C, T or 1, 1, ...)``."""
        rows = [promote(running).view(-1, self.num_features) for running in (mean, var)]
        if self.mode == "frame":
            steps = torch.arange(first_step, first_step + frames.shape[2], device=mean.device)
            rows = [of_frames[steps.clamp(max=len(of_frames) - 1)] for of_frames in rows]
        shape = (1, self.num_features, -1, *(1,) * (frames.dim() - 3))
        return Moments(*(of_frames.T.reshape(shape) for of_frames in rows))


def _moments_of_valid(frames: Tensor, valid: Tensor, counts: Tensor, dims: tuple[int, ...]) -> Moments:
    """Moments of what is no padding; the padding of ``frames`` is 0."""
    wide = promote(frames)
    n = counts.clamp(min=1).reshape(1, 1, -1, *(1,) * (frames.dim() - 3))
    mean = wide.sum(dims, keepdim=True) / n
    return Moments(mean, torch.where(valid, wide - mean, 0).square().sum(dims, keepdim=True) / n)


def _check_mode(mode: str, max_length: int | None, track_running_stats: bool) -> None:
    if mode not in {"sequence", "frame"}:
        raise ValueError(f"SequenceBatchNorm needs mode 'sequence' or 'frame'; got {mode!r}; choose one of the two")
    if mode == "sequence" and max_length is not None:
        raise ValueError(
            "SequenceBatchNorm keeps one set of running statistics in mode 'sequence'; "
            f"got max_length={max_length}; leave it out, or use mode='frame'"
        )
    if mode == "frame" and track_running_stats and (max_length is None or max_length < 1):
        raise ValueError(
            "SequenceBatchNorm in mode 'frame' needs max_length of at least 1, the frames with running statistics of "
            f"their own; got {max_length}; give the longest length, or track_running_stats=False"
        )
