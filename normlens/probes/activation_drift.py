"""ActivationDrift: do the distributions of the layers' inputs move while the network learns?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from normlens.information.moments import Moments
from normlens.probes.layer_distribution import watch
from normlens.probes.module_kinds import is_weight_layer
from normlens.run.capture import Activation, Layers
from normlens.run.probe import Readings, Step
from normlens.run.reading import Reading

__all__ = ["ActivationDrift"]

_LEVEL = 0.99


@dataclass(frozen=True)
class ActivationDrift:
    r"""Shift of mean, scale and whole distribution of every layer's input, against earlier measurements.

    With channel means :math:`\mu` and standard deviations :math:`\sigma` over samples and positions (classical
    internal covariate shift, Ioffe & Szegedy 2015) and distribution functions F, averaged over the channels of a layer:

    * ``mean_shift`` :math:`|\mu_t - \mu_r| / \sigma_r`,
    * ``log_scale`` :math:`|\ln(\sigma_t / \sigma_r)|`,
    * ``kl`` :math:`\tfrac12[\ln(\sigma_r^2/\sigma_t^2) + (\sigma_t^2 + (\mu_t-\mu_r)^2)/\sigma_r^2 - 1]` in nats,
      the divergence of the Gaussian now from the Gaussian then,
    * ``w1`` :math:`\int |F_t - F_r|\,dx / \sigma_r` and ``ks`` :math:`\sup_x |F_t - F_r|`, which also see a change of
      shape, of at most ``channels`` channels of ``values`` values each, evenly spaced (from histograms of 512
      bins: ``w1`` within 1 % of the raw values' own above its floor, ``ks`` within 1 % from 100 values on),

    each as ``…_first``, ``…_previous`` and ``…_since``, and beside them the null floors ``mean_shift_floor``,
    ``log_scale_floor``, ``kl_floor``, ``w1_floor`` and ``ks_floor``: the 99 % point of what a fresh batch of the same
    size would show if nothing had moved, so that a drift divided by its floor is significant above 1. Floors rest on
    standard errors that take the sample, not the pixel, as independent, with all channels moving together (the
    conservative case). They are asymptotic: of skewed activations that all move together, 256 samples exceed them in up
    to 2 % of the cases, 32 samples in 5 %. Channels that were constant at the reference are left out and counted in
    ``constant_channels``. Keep the probe batch fixed: otherwise the floor itself is what is measured.

    ``histogram`` is the distribution of the watched channels together: shares in 128 bins with edges
    :math:`s\sinh(u)`, u from -8.32 to 8.32 (asinh 2048) in equal steps and s in ``histogram_scale``, without ``zeros``,
    the share of values that are exactly zero; ``nonfinite`` is the share of NaN and Inf. ``counts`` and ``range`` are
    each channel's own histogram, in the file at the first measurement and at ``since`` alone.

    Args:
        layers: which modules; None for every linear and convolution layer behind another layer with parameters: the
            input of the first are the data.
        since: a step to compare with as well, e.g. the end of the warm-up; the run must measure at it.
        values: of a channel at most, for distributions.
        channels: of a layer at most, for distributions.
    """

    layers: Layers = None
    since: int | None = None
    values: int = 4096
    channels: int = 64

    def cost(self, step: Step) -> float:
        """A forward pass, two passes over the activations, and the histograms of a part of them."""
        return 1.5

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: there is no such layer, or ``values`` or ``channels`` is none.
            NotRecordedError: the run did not measure at ``since``.
        """
        if min(self.values, self.channels) < 1:
            raise ValueError(f"values and channels must be 1 at least; got {self.values} and {self.channels}")
        references = self._references(step)
        for name, activation in self._chosen(step).items():
            samples = activation.input_samples
            moments = Moments.of(samples)
            every = -(-samples.shape[2] // self.channels)
            first = step.previous.first
            watched = watch(name, samples, moments.mean, moments.std, first, every, self.values)
            yield from _state(name, moments)
            yield from watched.state(stored=not first or step.index == self.since)
            if first:
                yield from _floors(name, moments, len(samples))
                yield from watched.floor()
            for since, earlier in references.items():
                yield from _drift(name, moments, earlier, since)
                yield from watched.drift(earlier, every, since)

    def _references(self, step: Step) -> dict[str, Readings]:
        """Return what there is to compare with."""
        if not step.previous.first:
            return {}
        references = {"first": step.previous.first, "previous": step.previous.last}
        if self.since is not None and step.index > self.since:
            references["since"] = step.previous.at(self.since)
        return references

    def _chosen(self, step: Step) -> dict[str, Activation]:
        if self.layers is not None:
            return dict(step.activations(self.layers))
        trainable = list(
            step.activations(lambda _, module: is_weight_layer(module) or _is_trainable_leaf(module)).items()
        )
        chosen = {name: activation for name, activation in trainable[1:] if is_weight_layer(activation.module)}
        if not chosen:
            raise ValueError(
                "activation_drift needs a linear or convolution layer behind another layer; this model has none: name "
                "the layers whose input is to be watched, e.g. ActivationDrift(layers='head')"
            )
        return chosen


def _is_trainable_leaf(module: nn.Module) -> bool:
    return not list(module.children()) and bool(list(module.parameters()))


def _state(layer: str, moments: Moments) -> Iterator[Reading]:
    n = moments.count
    yield Reading("mean", _numpy(moments.mean), layer=layer, dims=("channel",), n=n)
    yield Reading("std", _numpy(moments.std), layer=layer, dims=("channel",), n=n)


def _floors(layer: str, moments: Moments, samples: int) -> Iterator[Reading]:
    """Yield the 99 % points for two independent batches: their difference has twice the variance of one."""
    usable = _numpy(moments.variance) != 0
    z = float(stats.t.ppf((1 + _LEVEL) / 2, samples - 1))
    with np.errstate(invalid="ignore"):  # inf / inf, of activations that overflow
        shift = math.sqrt(2) * _numpy(moments.mean_error)[usable] / _numpy(moments.std)[usable]
    scale = math.sqrt(2) * _numpy(moments.log_std_error)[usable]
    # KL = shift^2/2 + scale^2 to second order, a quadratic form in Gaussians: its tail is heaviest when they move
    # together (Szekely & Bakirov 2003), as mean and scale of skewed activations do.
    kl = z**2 * (shift**2 / 2 + scale**2)
    yield Reading("mean_shift_floor", _mean(z * shift), layer=layer, n=moments.count)
    yield Reading("log_scale_floor", _mean(z * scale), layer=layer, n=moments.count)
    yield Reading("kl_floor", _mean(kl), layer=layer, units="nats", n=moments.count)


def _drift(layer: str, now: Moments, earlier: Readings, since: str) -> Iterator[Reading]:
    if (layer, "mean") not in earlier or earlier[layer, "mean"].array.shape != tuple(now.mean.shape):
        return
    mean, std = earlier[layer, "mean"].array, earlier[layer, "std"].array
    usable = std != 0  # a channel that was nan is no constant one, and makes the layer's numbers nan
    with np.errstate(all="ignore"):  # ln 0 of a channel that has become constant, and activations that overflow
        shift = (_numpy(now.mean)[usable] - mean[usable]) / std[usable]
        log_ratio = np.log(_numpy(now.std)[usable] / std[usable])
        kl = (np.exp(2 * log_ratio) + shift**2 - 1) / 2 - log_ratio
        error = _mean(math.sqrt(2) * _numpy(now.mean_error)[usable] / std[usable])
    scale_error = _mean(math.sqrt(2) * _numpy(now.log_std_error)[usable])
    yield Reading(f"mean_shift_{since}", _mean(np.abs(shift)), layer=layer, error=error, n=now.count)
    yield Reading(f"log_scale_{since}", _mean(np.abs(log_ratio)), layer=layer, error=scale_error, n=now.count)
    yield Reading(f"kl_{since}", _mean(kl), layer=layer, units="nats", n=now.count)
    if since == "first":
        yield Reading("constant_channels", float((~usable).sum()), layer=layer, n=now.count)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().cpu().numpy()
    return array
