"""Two attacks on the statistics of a normalization in training: constant noise, and images of another data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normlens.nn.functional import per_channel, promote, spatial_dims
from normlens.nn.instance_enhancement_batch_norm import InstanceEnhancementBatchNorm
from normlens.nn.vocabulary import is_normalization

__all__ = ["ConstantNoise", "MixDatasets"]


class ConstantNoise:
    """Within a ``with`` block, scale and shift what every normalization layer has standardized, in train mode only.

    ``y = weight (scale x_hat + shift) + bias`` instead of ``weight x_hat + bias``; in instance enhancement batch norm
    ``weight`` is multiplied by the sample's gate. For batch norm it is absorbed by ``weight -> scale weight, bias ->
    bias + shift weight``: the functions it can be stay the same, and any harm is one of optimization, or of eval mode,
    where nothing is attacked and the output of a layer that has adapted differs by the inverse affine map.

    Valid for layers whose output is affine in ``weight`` and ``bias``, which the normalization layers of PyTorch and of
    :mod:`normlens.nn` are; not under ``torch.compile`` of a model compiled before the block.

    Source: the constant-noise attack of Liang, Huang, Liang and Yang, AAAI 2020, arXiv:1908.04008, with pairs such as
    (0.8, 0.8), (0.8, 0.5), (0.5, 0.5), (0.5, 0.2); the paper was not re-read.

    Args:
        model: what contains the layers; it is as it was after the block.
        scale: the factor ``N_a``.
        shift: the summand ``N_b``.

    Raises:
        ValueError: the model has no normalization layers.
    """

    def __init__(self, model: nn.Module, scale: float, shift: float) -> None:
        self.layers = [module for module in model.modules() if is_normalization(module)]
        if not self.layers:
            raise ValueError(
                f"ConstantNoise needs a model with normalization layers; {type(model).__name__} has none; "
                "build it with norm='batch_norm', say"
            )
        self.scale, self.shift = scale, shift
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Begin the attack."""
        self._handles = [layer.register_forward_hook(self._attack) for layer in self.layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the attack."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _attack(self, layer: nn.Module, arguments: tuple[Any, ...], y: Tensor) -> Tensor:
        if not layer.training:
            return y
        weight, bias = (_like(getattr(layer, name, None), layer, y) for name in ("weight", "bias"))
        bias = torch.zeros((), dtype=y.dtype, device=y.device) if bias is None else bias
        gain = torch.ones_like(bias) if weight is None else weight
        if isinstance(layer, InstanceEnhancementBatchNorm):
            gain = gain * _gate(layer, arguments[0]).to(y.dtype)
        return self.scale * (y - bias) + self.shift * gain + bias


class MixDatasets:
    """A loader whose batches carry images of another data set, which enter the batch statistics and not the loss.

    Yields ``(x, y, mask)``: ``x (n + k, ...)`` with ``k`` contaminants behind the ``n`` images of the batch, their
    targets ``y (n, ...)``, and ``mask (n + k,)``, true for those; the loss is ``loss(model(x)[mask], y)``.

    The statistics of a channel become those of the mixture: with ``N = n + k``, ``mean = (n m1 + k m2) / N`` and ``var
    = n / N (v1 + (m1 - mean)^2) + k / N (v2 + (m2 - mean)^2)``.

    Source: the mix-datasets attack of Liang, Huang, Liang and Yang, AAAI 2020, arXiv:1908.04008; the paper was not
    re-read.

    Args:
        loader: yields ``(x, y)``; it can be iterated again.
        other: the other images, ``(M, ...)`` of the same shape.
        k: how many to each batch, drawn with replacement.
        generator: draws; on the CPU.

    Raises:
        ValueError: ``k`` is negative, or there are no other images.
    """

    def __init__(
        self, loader: Iterable[tuple[Tensor, Tensor]], other: Tensor, k: int, *, generator: torch.Generator
    ) -> None:
        if k < 0 or len(other) == 0:
            raise ValueError(
                f"MixDatasets needs k of at least 0 and at least one other image; got k={k} and {len(other)} images; "
                "use k=0 for clean batches"
            )
        self.loader, self.other, self.k, self.generator = loader, other, k, generator

    def __len__(self) -> int:
        if not isinstance(self.loader, Sized):
            raise TypeError("MixDatasets has a length only when its loader has one")
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, y in self.loader:
            if x.shape[1:] != self.other.shape[1:]:
                raise ValueError(
                    f"MixDatasets needs images of one shape; got {tuple(x.shape[1:])} and "
                    f"{tuple(self.other.shape[1:])}; crop, resize or repeat channels first"
                )
            drawn = torch.randint(len(self.other), (self.k,), generator=self.generator)
            mask = torch.arange(len(x) + self.k, device=x.device) < len(x)
            yield torch.cat([x, self.other[drawn.to(self.other.device)].to(x)]), y, mask


def _like(values: Tensor | None, layer: nn.Module, y: Tensor) -> Tensor | None:
    """Lay a parameter out against the output: along the last dimensions for PyTorch's layer and RMS norm."""
    if values is None or isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return None if values is None else values.to(y.dtype)
    return per_channel(values.to(y.dtype), y)


def _gate(layer: InstanceEnhancementBatchNorm, x: Tensor) -> Tensor:
    """Return ``sigmoid(weight_readjust mean_nc + bias_readjust)``, ``(N, C, 1, ...)``."""
    wide = promote(x)
    level = wide.mean(spatial_dims(wide), keepdim=True) if wide.dim() > 2 else wide
    return torch.sigmoid(per_channel(layer.weight_readjust, wide) * level + per_channel(layer.bias_readjust, wide))
