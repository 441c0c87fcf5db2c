"""What a normalization layer says of itself: PyTorch's layers and ours in the words of this package."""

from __future__ import annotations

import inspect

import torch
import torch.distributed as dist
from torch import nn

from normlens.nn.base import Normalization

__all__ = ["channels", "concept", "is_normalization", "settings"]

_CONCEPTS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.batchnorm._BatchNorm, "BatchNorm"),
    (nn.modules.instancenorm._InstanceNorm, "InstanceNorm"),
    (nn.GroupNorm, "GroupNorm"),
    (nn.LayerNorm, "LayerNorm"),
    (nn.RMSNorm, "RMSNorm"),
)
_SETTINGS = {
    "eps": "eps",
    "momentum": "momentum",
    "track_running_stats": "track_running_stats",
    "num_groups": "groups",
}
_NOT_SETTINGS = {"num_features", "affine", "device", "dtype"}


def is_normalization(module: nn.Module) -> bool:
    """Say whether a module is one of PyTorch's normalization layers or a layer of :mod:`normlens.nn`."""
    return isinstance(module, (Normalization, *(kind for kind, _ in _CONCEPTS)))


def concept(layer: nn.Module) -> str:
    """Name the class of :mod:`normlens.nn` that a layer is: ``BatchNorm`` for ``torch.nn.BatchNorm2d``."""
    return next((name for kind, name in _CONCEPTS if isinstance(layer, kind)), type(layer).__name__)


def channels(layer: nn.Module) -> int:
    """Return ``num_features`` of a normalization layer: for PyTorch's layer norm the first size of its shape.

    Raises:
        ValueError: a lazy layer has not seen its first batch.
    """
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(
            f"the number of channels must be known; {type(layer).__name__} has not seen its first batch: call the "
            "model once"
        )
    shape = getattr(layer, "normalized_shape", None)
    return int(shape[0] if shape else getattr(layer, "num_channels", getattr(layer, "num_features", 0)))


def settings(layer: nn.Module, *, defaults: bool) -> dict[str, object]:
    """Return a layer's settings by the names of this package, without sizes, device and dtype.

    Args:
        layer: a normalization layer.
        defaults: whether to return also those that stand at the default of the layer's class. ``affine`` is always
            there; ``process_group`` where a ``torch.nn.SyncBatchNorm`` has one, or takes the default one.
    """
    declared = inspect.signature(type(layer)).parameters
    own = {name: name for name in declared if name not in _NOT_SETTINGS}
    names = own if isinstance(layer, Normalization) else _SETTINGS
    stated: dict[str, object] = {"affine": getattr(layer, "affine", getattr(layer, "elementwise_affine", True))}
    for theirs, ours in names.items():
        default = declared[theirs].default if theirs in declared else inspect.Parameter.empty
        if hasattr(layer, theirs) and (defaults or getattr(layer, theirs) != default):
            stated[ours] = getattr(layer, theirs)
    if "eps" in stated and stated["eps"] is None:
        stated["eps"] = _rms_eps(layer)
    group = getattr(layer, "process_group", None) or _default_group(layer)
    return stated if group is None else stated | {"process_group": group}


def _rms_eps(layer: nn.Module) -> float:
    """Return what PyTorch's RMS norm takes for ``eps=None``: the machine epsilon of the computation."""
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def _default_group(layer: nn.Module) -> dist.ProcessGroup | None:
    """Return the group that a ``SyncBatchNorm`` without one would use."""
    ready = isinstance(layer, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()
    return dist.group.WORLD if ready else None
