"""Another normalization in the place of a model's own, with what it has learned and with a report of what was lost."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normlens import catalog
from normlens.nn.vocabulary import channels, concept, is_normalization, settings

__all__ = ["Conversion", "ConversionReport", "convert"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SPREADS = ("running_var", "running_std")


@dataclass(frozen=True, repr=False)
class Conversion:
    """What became of one layer.

    Attributes:
        name: where it stands in the model; a layer that stands in several places is named after the first.
        before: the class that was replaced.
        after: the class that stands there now.
        kept: what went over: parameters, running statistics, and settings as ``eps=0.001``.
        lost: what the old layer had and the new one has no place for.
        new: parameters and buffers that begin at their initial values.
    """

    name: str
    before: str
    after: str
    kept: tuple[str, ...]
    lost: tuple[str, ...]
    new: tuple[str, ...]

    def __repr__(self) -> str:
        said = [f"{what} {', '.join(things)}" for what in ("kept", "lost", "new") if (things := getattr(self, what))]
        return "; ".join([f"{self.name}: {self.before} -> {self.after}", *said])


@dataclass(frozen=True, repr=False)
class ConversionReport:
    """What became of each converted layer; ``repr`` has one line for each.

    Attributes:
        layers: one :class:`Conversion` for each, in the order of the model.
    """

    layers: tuple[Conversion, ...]

    def __repr__(self) -> str:
        return "\n".join([f"ConversionReport, layers converted: {len(self.layers)}", *map(repr, self.layers)])


class _Place(NamedTuple):
    """Where a layer stands: the attribute of a parent, and its name in the model."""

    parent: nn.Module
    attribute: str
    name: str
    layer: nn.Module


def convert(
    model: nn.Module,
    to: str | Callable[..., nn.Module] = "batch_channel_norm",
    layers: str | Sequence[str] | None = None,
) -> ConversionReport:
    """Put another normalization in the place of a model's own, in place, and say what was kept and what was lost.

    Replaced are PyTorch's batch, instance, group, layer and RMS norm layers and those of :mod:`normlens.nn`, but not
    layers inside of such a layer. The new layer takes over:

    - parameters of the same name and shape: the very objects, so that ties hold and an optimizer goes on with them;
    - ``running_mean``, ``running_var`` and ``num_batches_tracked`` where both layers mean the same by them: the running
      variance of an instance norm is that within a sample, which an instance norm alone can use;
    - whether there is an affine part, and settings of the same name: between PyTorch's layer and ours of the same kind
      all of them, so that the function is the same, else those that differ from the default of their class;
    - dtype, device, and train or eval mode.

    A layer of the class asked for stays as it is. One that stands in several places is converted once and stands in all
    of them again. PyTorch's layer and RMS norm normalize the last dimensions, ours take the channels at dimension 1:
    they agree on ``(N, C)``, and on ``(N, C, *spatial)`` when the old layer pools all but ``N``.

    Args:
        model: what contains the layers; it is changed.
        to: a name or class of :mod:`normlens.nn`, or ``functools.partial`` of a class with settings, which then come
            before those of the old layer.
        layers: a glob, or names and globs of the layers to convert; None for all.

    Raises:
        ValueError: the model is itself a layer to convert, ``layers`` names nothing that could be converted, a lazy
            layer has not seen its first batch, or the settings do not fit together; the model is then as it was.
        UnknownNameError: ``to`` is no name of :mod:`normlens.nn`.
    """
    if is_normalization(model):
        raise ValueError(
            f"convert changes layers inside of a model; got a {type(model).__name__} by itself, which stands nowhere: "
            "build the new layer directly, or wrap it in nn.Sequential"
        )
    make = catalog.load("normlens.nn", to) if isinstance(to, str) else to
    places = list(_places(model))
    made: dict[nn.Module, nn.Module] = {}
    report = []
    for place in _chosen(places, layers):
        if type(place.layer) is not make:
            made[place.layer], conversion = _converted(place, make, model)
            report.append(conversion)
    for place in places:  # only now: if one layer cannot be converted, the model stays as it was
        if place.layer in made:
            setattr(place.parent, place.attribute, made[place.layer])
    return ConversionReport(tuple(report))


def _places(module: nn.Module, prefix: str = "") -> Iterator[_Place]:
    """Yield every place of a normalization layer, also all those of one that stands in several."""
    for attribute, child in module._modules.items():
        if child is not None and is_normalization(child):
            yield _Place(module, attribute, prefix + attribute, child)
        elif child is not None:
            yield from _places(child, f"{prefix}{attribute}.")


def _chosen(places: list[_Place], layers: str | Sequence[str] | None) -> list[_Place]:
    """List the first place of each layer that ``layers`` selects by any of its names."""
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    selected = set()
    for pattern in patterns:
        found = {place.layer for place in places if fnmatch.fnmatchcase(place.name, pattern)}
        if not found:
            known = ", ".join(place.name for place in places) or "none at all"
            raise ValueError(
                f"layers must name normalization layers of the model; got {pattern!r}, which matches none; "
                f"there are {known}"
            )
        selected |= found
    first = {place.layer: place for place in reversed(places)}
    return [place for place in places if place.layer in selected and first[place.layer] is place]


def _converted(place: _Place, make: Callable[..., nn.Module], model: nn.Module) -> tuple[nn.Module, Conversion]:
    """Build the layer for a place, hand over what the old one has, and say what became of everything."""
    old = place.layer
    passed, unfit = _settings(old, make)
    new = make(channels(old), **passed, **_placement(old, model)).train(old.training)
    tensors = _hand_over_parameters(old, new) | _hand_over_statistics(old, new)
    had, has = (dict(chain(layer.named_parameters(), layer.named_buffers())) for layer in (old, new))
    hooks = ["hooks"] if any(getattr(old, kind) for kind in _HOOKS) else []
    renamed = [theirs if theirs == ours else f"{theirs} as {ours}" for theirs, ours in tensors.items()]
    return new, Conversion(
        name=place.name,
        before=type(old).__name__,
        after=type(new).__name__,
        kept=(*renamed, *_said(passed)),
        lost=(*(name for name in had if name not in tensors), *_said(unfit), *hooks),
        new=tuple(name for name in has if name not in tensors.values()),
    )


def _settings(old: nn.Module, make: Callable[..., nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the settings of ``old`` that ``partial`` has not fixed into those the new class takes and the others."""
    fixed, taken = getattr(make, "keywords", {}), inspect.signature(make).parameters
    name = getattr(getattr(make, "func", make), "__name__", "")
    stated = settings(old, defaults=concept(old) == name)
    free = {key: value for key, value in stated.items() if key not in fixed}
    passed = {key: value for key, value in free.items() if key in taken and _admits(taken[key], value)}
    return passed, {key: value for key, value in free.items() if key not in passed}


def _admits(parameter: inspect.Parameter, value: object) -> bool:
    """A None goes only where the new class says that it takes one, as ``momentum`` does not everywhere."""
    return value is not None or "None" in str(parameter.annotation)


def _said(values: dict[str, Any]) -> list[str]:
    """Write settings for the report; of an affine part the parameters themselves tell."""
    return [f"{name}={value}" for name, value in values.items() if name != "affine"]


def _placement(old: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Device and dtype of ``old``, and of the model where ``old`` has no tensors."""
    tensors = (t for module in (old, model) for t in chain(module.parameters(), module.buffers()))
    like = next((t for t in tensors if t.is_floating_point()), None)
    return {} if like is None else {"device": like.device, "dtype": like.dtype}


def _hand_over_parameters(old: nn.Module, new: nn.Module) -> dict[str, str]:
    """Let ``new`` have the parameters of ``old`` that it has too, in the same shape; map their names, old to new."""
    has = dict(new.named_parameters(recurse=False))
    same = {n: p for n, p in old.named_parameters(recurse=False) if n in has and p.shape == has[n].shape}
    for name, parameter in same.items():
        new.register_parameter(name, parameter)
    return {name: name for name in same}


@torch.no_grad()
def _hand_over_statistics(old: nn.Module, new: nn.Module) -> dict[str, str]:
    """Copy the running statistics that mean the same in both, and their count if all do; map their names."""
    if (concept(old) == "InstanceNorm") != (concept(new) == "InstanceNorm"):
        return {}
    had, has = dict(old.named_buffers(recurse=False)), dict(new.named_buffers(recurse=False))
    kept = {}
    for theirs, ours in (("running_mean", "running_mean"), *product(_SPREADS, _SPREADS)):
        if theirs in had and ours in has and had[theirs].shape == has[ours].shape:
            has[ours].copy_(_statistic(ours, old, new))
            kept[theirs] = ours
    count = "num_batches_tracked"
    all_kept = {name for name in has if name.startswith("running_")} == set(kept.values())
    if kept and all_kept and count in had and count in has and had[count].shape == has[count].shape:
        has[count].copy_(had[count])
        kept[count] = count
    return kept


def _statistic(name: str, old: nn.Module, new: nn.Module) -> Tensor:
    """Return a running statistic of ``old`` as ``new`` keeps it; what has ``running_std`` has ``running_var`` too."""
    value: Tensor = getattr(old, "running_mean" if name == "running_mean" else "running_var")
    eps: float = getattr(new, "eps", 0.0)
    return (value + eps).sqrt() if name == "running_std" else value
