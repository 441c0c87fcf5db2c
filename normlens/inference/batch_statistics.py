"""The layers whose running statistics are the pooled moments of their input, and those statistics set from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from normlens.nn.base import RunningNormalization
from normlens.nn.batch_renorm import BatchRenorm
from normlens.nn.decorrelated_batch_norm import DecorrelatedBatchNorm
from normlens.nn.functional import Moments, batch_moments, promote
from normlens.nn.instance_norm import InstanceNorm
from normlens.nn.mixture_norm import MixtureNorm
from normlens.nn.sequence_batch_norm import SequenceBatchNorm
from normlens.nn.vocabulary import channels, is_normalization

__all__ = ["observed", "pooled_layers", "set_moments", "stored_moments"]

_OTHER = (DecorrelatedBatchNorm, InstanceNorm, MixtureNorm, SequenceBatchNorm)  # statistics of another shape or sense
_POOLED = (nn.modules.batchnorm._BatchNorm, RunningNormalization, BatchRenorm)
_NAMES = ("running_mean", "running_var", "running_std")

Seen = Callable[[nn.Module, int, Moments], None]
"""``seen(layer, count, moments)``: the moments of what is about to enter ``layer``, ``(C,)`` each."""


def pooled_layers(model: nn.Module, *, what: str) -> dict[str, nn.Module]:
    """Return the layers whose running statistics are moments of their input over batch and space, by name.

    PyTorch's batch norms and ours, ghost, renormalized, mean-only, cross-iteration, Kalman, instance-enhanced,
    switchable and batch-channel norm, and EvoNorm B0. Layers without running statistics are left out: they take the
    batch's anyway.

    Args:
        model: what contains them, or one of them.
        what: who asks, named in the message.

    Raises:
        ValueError: a layer keeps running statistics of another sense, which would stay behind; or a lazy layer has not
            seen its first batch.
    """
    found: dict[str, nn.Module] = {}
    for name, layer in model.named_modules():
        if not is_normalization(layer) or not any(key.startswith("running_") for key, _ in layer.named_buffers()):
            continue
        if isinstance(layer, _OTHER) or not isinstance(layer, _POOLED):
            raise ValueError(
                f"{what} needs running statistics that are moments over batch and space; got {type(layer).__name__} at "
                f"{name!r}, whose statistics mean something else; convert that layer to BatchNorm, or leave it in a "
                "part of the model of its own"
            )
        channels(layer)  # refuses a lazy layer
        found[name] = layer
    return found


def stored_moments(layer: nn.Module) -> Moments:
    """Return the running mean and variance of a layer, in at least float32; nan for a variance that it does not keep.

    Args:
        layer: one of :func:`pooled_layers`.
    """
    mean, var = layer.running_mean, layer.running_var
    if not isinstance(mean, Tensor):
        raise TypeError(f"a running mean must be a tensor; got {mean!r}")
    wide = promote(mean)
    return Moments(wide, promote(var) if isinstance(var, Tensor) else torch.full_like(wide, torch.nan))


def set_moments(layer: nn.Module, moments: Moments) -> None:
    """Let new tensors be the running statistics of a layer, in the dtype of the old, which stay as they are.

    Args:
        layer: one of :func:`pooled_layers`.
        moments: mean and variance, ``(C,)``.
    """
    eps = float(getattr(layer, "eps", 0.0))
    values = dict(zip(_NAMES, (moments.mean, moments.var, (moments.var + eps).sqrt()), strict=True))
    for name, old in layer.named_buffers(recurse=False):
        if name in values:
            setattr(layer, name, values[name].to(old.dtype))


@contextmanager
def observed(layers: dict[str, nn.Module], seen: Seen) -> Iterator[None]:
    """Tell ``seen`` the moments of every input of the layers, just before the layer is called.

    Args:
        layers: some of :func:`pooled_layers`.
        seen: what is told.

    Raises:
        ValueError: an input has one value per channel, which has no variance.
    """

    def before(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].detach()
        count = x.numel() // max(x.shape[1], 1)
        if count < 2:
            raise ValueError(
                f"the statistics of a batch need more than one value per channel; got {tuple(x.shape)} at "
                f"{type(layer).__name__}; use a larger batch, or the stored statistics"
            )
        seen(layer, count, Moments(*(moment.flatten() for moment in batch_moments(x))))

    with ExitStack() as undo:
        for layer in layers.values():
            undo.callback(layer.register_forward_pre_hook(before).remove)
        yield
