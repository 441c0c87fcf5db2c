"""Elimination: how far are the channels from the singularity where a unit falls out of the network?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normlens.information.moments import Moments
from normlens.probes.module_kinds import flat_below_zero, is_nonlinearity, is_normalization
from normlens.probes.normalized_features import statdiff_readings
from normlens.probes.unit_connections import connections
from normlens.probes.unit_redundancy import dependence_readings, incoming_readings, outgoing_readings
from normlens.run.capture import Activation, Layers
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["Elimination"]


@dataclass(frozen=True)
class Elimination:
    r"""Distance of every channel to being switched off for good, and of every normalization to batch norm's (0, 1).

    Of the tensor z that enters a nonlinearity, per channel over samples and positions: ``mean`` and ``std`` of z;
    ``offset`` :math:`s_c = E[z_c]/\mathrm{Std}[z_c]` (for batch norm exactly :math:`\beta_c/|\gamma_c|`; a constant
    channel has :math:`\pm\infty`), ``deactivation_rate`` :math:`P(z_c \le 0)`, ``margin`` :math:`\min_c s_c`,
    ``activity_gaussian`` :math:`\Phi(s_c)` and ``activity_gap`` :math:`P(z_c > 0) - \Phi(s_c)`, 0 for a Gaussian; and
    where the nonlinearity is flat below zero ``dead`` (channels with rate exactly 1 on this sample) and ``near_dead``
    (rate at least :math:`1-\delta`). Cantelli bounds the activity on one side for any distribution:
    :math:`P(z_c > 0) \le 1/(1+s_c^2)` for :math:`s_c < 0`; nothing bounds it from below.

    Of its units, where the graph of the forward pass shows who writes and who reads them (else left out):
    ``incoming_norm``, ``outgoing_norm``, ``overlap`` (the largest :math:`|\cos|` of a unit's incoming weights with
    another one's) and ``overlap_mean`` (the mean correlation of all pairs); behind a normalization the incoming norm
    has no scale of its own. Of what leaves the nonlinearity: ``dependence``, the smallest over the largest eigenvalue
    of the units' Gram matrix, and ``covariance_tail``, the mean of the smallest tenth of their covariance's.

    Of the output of a normalization layer before its last affine map: ``statdiff_mean``
    :math:`\tfrac1C\sum_c|\mu_c|` and ``statdiff_std`` :math:`\tfrac1C\sum_c|\sigma_c - 1|`. All dimensionless but
    mean, std, norms and ``covariance_tail``.

    A channel that is dead on n values may still be active with a probability below 3/n (rule of three, 95 %).
    Source: Qiao et al., arXiv:1911.09738; the formulas are ours, the paper's Eq. 31 was not at hand. ``overlap_mean``,
    the mean of ``incoming_norm`` and ``covariance_tail`` after Orhan and Pitkow, ICLR 2018, arXiv:1701.09175.

    Args:
        layers: which modules; None for every rectifier-like module (its input is measured), or, in a model that calls
            its nonlinearities as functions, every normalization (its output is).
        delta: how close to one a deactivation rate counts as near dead.
    """

    layers: Layers = None
    delta: float = 1e-2

    def cost(self, step: Step) -> float:
        """A forward pass, a few passes over the activations, and the Gram matrices of weights and activations."""
        return 1.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: the model has neither rectifiers (or relatives) nor normalizations as modules.
        """
        chosen = self._chosen(step)
        for name, activation in chosen.items():
            enters = is_nonlinearity(activation.module)
            samples = activation.input_samples if enters else activation.output_samples
            can_die = flat_below_zero(activation.module) or not enters
            yield from _offsets(name, samples, self.delta, can_die)
            if enters:
                yield from dependence_readings(name, activation.output_samples)
        yield from _weights(step, chosen)
        for name, activation in step.activations(lambda _, module: is_normalization(module)).items():
            yield from statdiff_readings(name, activation)

    def _chosen(self, step: Step) -> dict[str, Activation]:
        if self.layers is not None:
            return dict(step.activations(self.layers))
        chosen = step.activations(lambda _, module: is_nonlinearity(module))
        chosen = chosen or step.activations(lambda _, module: is_normalization(module))
        if not chosen:
            raise ValueError(
                "elimination needs rectifiers, their smooth relatives or normalizations that are modules; this model "
                "has none: if it calls them as functions, name the layers whose output enters the nonlinearity, e.g. "
                "Elimination(layers='conv*'); units of tanh or sigmoid die by saturation, which Saturation() measures"
            )
        return dict(chosen)


def _offsets(layer: str, samples: Tensor, delta: float, can_die: bool) -> Iterator[Reading]:
    moments = Moments.of(samples)
    n = moments.count
    rate = (samples <= 0).double().mean((0, 1))
    rate = torch.where(samples.isnan().any(1).any(0), torch.nan, rate)
    offset = moments.mean / moments.std
    # A constant channel at or below zero is as far inside the dead region as can be; 0/0 would hide it as nan.
    offset = torch.where((moments.std == 0) & (moments.mean <= 0), -torch.inf, offset)
    yield Reading("mean", moments.mean.cpu().numpy(), layer=layer, dims=("channel",), n=n)
    yield Reading("std", moments.std.cpu().numpy(), layer=layer, dims=("channel",), n=n)
    yield Reading("offset", offset.cpu().numpy(), layer=layer, dims=("channel",), n=n)
    yield Reading("deactivation_rate", rate.cpu().numpy(), layer=layer, dims=("channel",), n=n)
    gaussian = torch.special.ndtr(offset)
    yield Reading("activity_gaussian", gaussian.cpu().numpy(), layer=layer, dims=("channel",), n=n)
    yield Reading("activity_gap", (1 - rate - gaussian).cpu().numpy(), layer=layer, dims=("channel",), n=n)
    margin, error = _margin(offset, moments)
    yield Reading("margin", margin, layer=layer, error=error, n=n)
    yield Reading("channels", float(len(rate)), layer=layer)
    if can_die:
        yield Reading("dead", float((rate == 1).sum()), layer=layer, n=n)
        yield Reading("near_dead", float((rate >= 1 - delta).sum()), layer=layer, n=n)


def _margin(offset: Tensor, moments: Moments) -> tuple[float, float]:
    """Return the smallest offset and its standard error: the mean's and the scale's, by the delta method."""
    c = int(offset.nan_to_num(nan=-math.inf).argmin())
    relative = moments.mean_error[c] / moments.std[c]
    return float(offset[c]), float((relative**2 + (offset[c] * moments.log_std_error[c]) ** 2).sqrt())


def _weights(step: Step, chosen: dict[str, Activation]) -> Iterator[Reading]:
    """Read the weights into and out of the units, where it is known which these are."""
    modules: dict[str, Any] = dict(step.risk.model.named_modules())
    for name, known in connections(step.risk.model, chosen).items():
        if known.writer:
            yield from incoming_readings(name, modules[known.writer])
        if known.readers:
            units = len(modules[known.writer].weight)
            yield from outgoing_readings(name, units, [modules[reader] for reader in known.readers])
