"""How far the running statistics of a layer are from those of its input, beside what sampling alone would make."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.nn.running import averaging_factor
from normlens.probes.statistic_noise import Noise
from normlens.run.reading import Reading

__all__ = ["gap_readings"]

_MEAN_SIZE = math.sqrt(2 / math.pi)  # E|z| of a standard normal variable


def gap_readings(layer: str, module: nn.Module, noise: Noise, batch: int, batch_error: float) -> Iterator[Reading]:
    """Yield the gaps between running statistics and data, in units of the layer, and the errors of filtered means.

    Args:
        layer: its name.
        module: the layer; nothing is yielded of one without a running mean.
        noise: of what enters it.
        batch: samples of a training batch.
        batch_error: squared error of the mean of such a batch, in units of the deviation.
    """
    stored = _stored(module)
    if stored is None:
        return
    mean, eps = stored.mean.to(noise.mean), float(getattr(module, "eps", 0.0))
    unit, factor = noise.variance + eps, _factor(module)
    n = noise.samples * noise.positions
    gap = (mean - noise.mean).abs() / unit.sqrt()
    # An average of batches with weights f (1 - f)^k has f / (2 - f) of the variance of one.
    samples = 1 / (1 / noise.samples + factor / (2 - factor) / batch)
    of_mean = noise.design * noise.variance / (noise.positions * unit)  # variance of a mean in units of s, times N
    of_variance = noise.log_variance_noise * (noise.variance / unit).square()
    floors = {"running_mean_gap_floor": _MEAN_SIZE * float((of_mean / samples).sqrt().mean())}
    error = float((of_mean / noise.samples).sqrt().mean())  # all channels moving together, the conservative case
    yield Reading("running_mean_gap", float(gap.mean()), error=error, layer=layer, n=n)
    if stored.var is not None:
        ratio = ((stored.var.to(noise.mean) + eps) / unit).log().abs()
        error = float((of_variance / noise.samples).sqrt().mean())
        yield Reading("running_log_variance_gap", float(ratio.mean()), error=error, layer=layer, n=n)
        floors["running_log_variance_gap_floor"] = _MEAN_SIZE * float((of_variance / samples).sqrt().mean())
    for name, floor in {**floors, "running_gap_floor": max(floors.values())}.items():
        yield Reading(name, floor, layer=layer, n=n)
    yield Reading("initial_share", _initial_share(module, factor), layer=layer)
    yield from _filtered(layer, batch_error, float((gap.square() - of_mean / noise.samples).mean()), n)


def _filtered(layer: str, batch_error: float, running_error: float, n: int) -> Iterator[Reading]:
    """Yield the errors of the running mean and of its best mix with a batch's."""
    running = running_error if math.isnan(running_error) else max(running_error, 0.0)
    both = batch_error + running
    yield Reading("running_error", running, layer=layer, n=n)
    yield Reading("filtered_error", batch_error * running / both if both else 0.0, layer=layer, n=n)
    yield Reading("best_prior_weight", batch_error / both if both else math.nan, layer=layer, n=n)


@dataclass(frozen=True)
class _Stored:
    """Running statistics, ``(C,)`` each; a layer of means alone has no variance."""

    mean: Tensor
    var: Tensor | None


def _stored(module: nn.Module) -> _Stored | None:
    mean, var, std = (getattr(module, f"running_{what}", None) for what in ("mean", "var", "std"))
    if not isinstance(mean, Tensor):
        return None
    if isinstance(std, Tensor):  # batch renormalization keeps the deviation, its eps included
        return _Stored(promote(mean), promote(std).square() - float(getattr(module, "eps", 0.0)))
    return _Stored(promote(mean), promote(var) if isinstance(var, Tensor) else None)


def _factor(module: nn.Module) -> float:
    """Return the weight of the newest batch in the running statistics."""
    seen = getattr(module, "num_batches_tracked", None)
    momentum = getattr(module, "momentum", 0.1)
    return averaging_factor(momentum, seen if isinstance(seen, Tensor) else 1)


def _initial_share(module: nn.Module, factor: float) -> float:
    seen = getattr(module, "num_batches_tracked", None)
    if not isinstance(seen, Tensor):
        return math.nan
    averaging = getattr(module, "momentum", 0.1) is None
    return float(int(seen) == 0) if averaging else (1 - factor) ** int(seen)
