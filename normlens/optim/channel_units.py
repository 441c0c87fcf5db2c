"""The modules of a stream of channels, and a positive factor for each channel put through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normlens.nn.vocabulary import concept
from normlens.optim.rescaling_graph import Stream, find_streams, is_weight_layer
from normlens.optim.weight_layers import WeightLayer
from normlens.risk import eager_module

__all__ = ["ChannelUnit", "channel_units", "rescale"]


@dataclass(frozen=True)
class ChannelUnit:
    """A stream with its modules in the place of their names.

    Args:
        writers: layers with these output channels.
        readers: layers with these input channels.
        norms: batch norms between them.
    """

    writers: list[WeightLayer]
    readers: list[WeightLayer]
    norms: list[Any]

    @property
    def channels(self) -> int:
        """How many channels the stream has."""
        return self.writers[0].weight.shape[0]


def channel_units(model: nn.Module, streams: Sequence[Stream] | None, *, fold: bool) -> list[ChannelUnit]:
    """Return the modules of streams, checked.

    Args:
        model: whose modules the streams name.
        streams: None for those that :func:`find_streams` finds.
        fold: whether batch norms carry the factors on; otherwise they are left out.

    Raises:
        ValueError: streams that cannot be found, that name no module or share a layer's side, layers that cannot be
            rescaled by the channel or share a weight, or channels that do not match.
    """
    modules = dict(eager_module(model).named_modules())
    chosen = find_streams(model) if streams is None else streams
    for name in (n for s in chosen for n in (*s.writers, *s.readers, *s.norms)):
        if name not in modules:
            raise ValueError(f"a stream needs names of modules; got {name!r}; choose from model.named_modules()")
    for side in ([n for s in chosen for n in s.writers], [n for s in chosen for n in s.readers]):
        if len(set(side)) < len(side):
            raise ValueError(f"a stream needs layers of its own; got {side}; merge the streams that share one")
    units = [_unit(stream, modules, fold) for stream in chosen]
    _check_tied(model, units)
    return units


def rescale(unit: ChannelUnit, scale: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Multiply a stream's channels by ``scale > 0``, in place; return its parameters with the factor of each.

    Rows and biases of what writes are multiplied and columns of what reads are divided; of batch norms ``weight``,
    ``bias`` and ``running_mean`` are multiplied by ``scale``, ``running_var`` by its square.

    Args:
        unit: the stream.
        scale: one factor per channel, (C,).
    """
    scaled = [_along(scale, tensor) for layer in (*unit.writers, *unit.norms) for tensor in (layer.weight, layer.bias)]
    found = [pair for pair in scaled if pair is not None]
    found += [(layer.weight, _spread(1 / scale, layer.weight, dim=1)) for layer in unit.readers]
    for norm in unit.norms:
        for buffer, factor in ((norm.running_mean, scale), (norm.running_var, scale.square())):
            if buffer is not None:
                buffer.mul_(_spread(factor, buffer, dim=0))
    for tensor, factor in found:
        tensor.mul_(factor)
    return found


def _along(scale: Tensor, tensor: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if tensor is None else (tensor, _spread(scale, tensor, dim=0))


def _spread(scale: Tensor, like: Tensor, *, dim: int) -> Tensor:
    """Lay one value per channel along a dimension, where each may stand for several entries in a row."""
    repeats = like.shape[dim] // len(scale)
    spread = (scale if repeats == 1 else scale.repeat_interleave(repeats)).to(like.dtype)
    rest = like.dim() - dim - 1
    return spread if not rest else spread.view(-1, *[1] * rest)


def _unit(stream: Stream, modules: Mapping[str, nn.Module], fold: bool) -> ChannelUnit:
    sides: list[list[Any]] = [[modules[name] for name in side] for side in (stream.writers, stream.readers)]
    norms: list[Any] = [modules[name] for name in stream.norms] if fold else []
    plain = all(side and all(is_weight_layer(layer) for layer in side) for side in sides)
    if not plain or not all(concept(norm) == "BatchNorm" and norm.weight is not None for norm in norms):
        raise ValueError(
            "a stream needs plain linear layers or convolutions (no groups, transposition or parametrization) on both "
            f"sides, and batch norms with weight and bias; got {stream}; leave what is none out of the streams"
        )
    unit = ChannelUnit(sides[0], sides[1], norms)
    _check_sizes(unit)
    return unit


def _check_tied(model: nn.Module, units: Sequence[ChannelUnit]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for layer in (layer for unit in units for layer in (*unit.writers, *unit.readers)):
        if len(tied := names[id(layer.weight)]) > 1:
            raise ValueError(f"a stream needs weights of one layer each; got {tied}, which are one; untie them")


def _check_sizes(unit: ChannelUnit) -> None:
    written = [layer.weight.shape[0] for layer in unit.writers]
    read = [layer.weight.shape[1] for layer in unit.readers] + [len(norm.weight) for norm in unit.norms]
    conv = all(not isinstance(layer, nn.Linear) for layer in unit.writers)
    flat = [conv and not isinstance(layer, nn.modules.conv._ConvNd) for layer in (*unit.readers, *unit.norms)]
    fits = [
        size % written[0] == 0 if multiple else size == written[0] for size, multiple in zip(read, flat, strict=True)
    ]
    if len(set(written)) > 1 or not all(fits):
        raise ValueError(
            f"a stream needs one number of channels; got {written} written and {read} read; only behind the flattened "
            "output of a convolution may a multiple be read; correct the stream"
        )
