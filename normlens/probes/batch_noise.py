"""BatchNoise: how noisy are the statistics of a batch, and do the running ones match the data?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normlens.batch import batch_size
from normlens.inference.batch_statistics import pooled_layers
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.ghost_batch_norm import GhostBatchNorm, ghost_sizes
from normlens.nn.independent_component import IndependentComponent
from normlens.nn.vocabulary import is_normalization
from normlens.probes.one_batch import at_the_mean, first_batch, training
from normlens.probes.running_gap import gap_readings
from normlens.probes.statistic_noise import Noise, average, standard_error
from normlens.risk import EmpiricalRisk
from normlens.run.capture import Activation, Layers, choose
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["BatchNoise"]

_BATCHES = 8  # that a cut of the probe data should have at least
_PARTS = 16  # of the probe data, whose losses give the standard error of the mean


@dataclass(frozen=True)
class BatchNoise:
    r"""Noise of the batch statistics of every batch-norm-like layer, and the mismatch of its running statistics.

    Of what enters the layer on the probe data (channels at dimension 1), M = samples x positions values per channel and
    batch, :math:`\rho` the excess kurtosis, averaged over the channels that are not constant:

    * ``mean_noise`` :math:`\mathrm{Var}(\mu_B) M/\sigma^2`, averaged over all cuts of the data into batches (so it does
      not depend on their size), and ``std_noise`` :math:`\mathrm{Var}(\sigma_B)\,4M/(\sigma^2(\rho+2))` over batches of
      ``cut`` samples. Both are 1 for independent values; the first is so by construction with one value per sample, the
      second only for large M: at M = 32 it is 0.992 for Gaussian, 1.06 for uniform and 0.87 for exponential channels.
      The first rises above 1 where positions are correlated: up to their number, where they all are the same.
    * ``effective_values`` :math:`M_{eff} = \sigma^2/\mathrm{Var}(\mu_B)` of ``values_per_channel`` = M, for batches of
      ``batch_size``: those of the training where the lens was told of one, else of ``cut``; of a ghost batch norm, the
      ghosts. ``statistic_error`` :math:`= 1/\sqrt{M_{eff}}` is the error of a batch's mean in units of
      :math:`\sigma`, ``batch_error`` its square; ``excess_kurtosis`` is :math:`\rho`.

    With running statistics m, v, in units of :math:`s = \sqrt{\sigma^2+\epsilon}`: ``running_mean_gap``
    :math:`|m-\mu|/s` and ``running_log_variance_gap`` :math:`|\ln((v+\epsilon)/s^2)|`, and what they are on average by
    the sampling of both sides alone, ``running_mean_gap_floor``, ``running_log_variance_gap_floor`` and
    ``running_gap_floor``, the larger of the two (at constant weights: in training the running ones also lag).
    ``initial_share`` of the running statistics is still what they began with. ``running_error`` is the mean of
    :math:`(m-\mu)^2/s^2` less its sampling part, not below 0; ``filtered_error`` :math:`= e r/(e + r)` that of the best
    mix of a batch (e) and the running mean (r) as in batch Kalman norm, at ``best_prior_weight`` :math:`e/(e+r)`.

    Of the network: ``layers``, ``cut``, ``training_batch`` (nan: not known), and on the probe data as one batch, in
    eval mode but for the normalizations, ``loss_train`` with the batch's statistics, ``loss_eval`` with the running
    ones, and ``loss_gap``, the second less the first. (IC layers keep to eval mode, since they would draw.)

    Source: Luo, Wang, Shao and Peng, ICLR 2019, arXiv:1809.00846 (the law); Wang et al., NeurIPS 2018, arXiv:1802.03133
    (the filter); the errors and the effective sample size are ours.

    Args:
        batch: samples of a batch of the cut; None for the training's where eight fit into the probe data, else 32, or
            as many as make eight batches.
        samples: how many of the probe data the losses are taken on.
        layers: which of the batch-norm-like layers; None for all.
    """

    batch: int | None = None
    samples: int = 1024
    layers: Layers = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 2:
            raise ValueError(f"BatchNoise needs batches of at least 2 samples to cut; got {self.batch}; 32 is usual")

    def cost(self, step: Step) -> float:
        """Three forward passes, and passes over what enters the layers."""
        return 1.5

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``layers`` names nothing.
        """
        known = _training_batch(step)
        chosen = self._chosen(step)
        total = max((len(activation.input) for activation in chosen.values()), default=0)
        cut = self.batch or _cut(known, total)
        yield Reading("layers", float(len(chosen)))
        yield Reading("training_batch", math.nan if known is None else float(known))
        if chosen:
            yield Reading("cut", float(cut))
        yield from _losses(first_batch(step.risk.evaluated(), self.samples))
        for name, activation in chosen.items():
            yield from _layer(name, activation, known or cut, cut, step.generator)

    def _chosen(self, step: Step) -> dict[str, Activation]:
        if not any(map(_takes_batches, step.risk.model.modules())):
            return {}
        every = choose(step.activations(None), self.layers)
        return {name: found for name, found in every.items() if _takes_batches(found.module) and found.input.ndim > 1}


def _takes_batches(module: nn.Module) -> bool:
    """Say whether a layer's statistics are moments of its input over batch and space."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm | BatchNorm | GhostBatchNorm):
        return True
    try:
        return is_normalization(module) and bool(pooled_layers(module, what="batch noise"))
    except ValueError:  # running statistics of another sense
        return False


def _training_batch(step: Step) -> int | None:
    if step.batch is not None:
        return batch_size(step.batch)
    before = step.previous.last.get(("", "training_batch"))  # the last measurement of a run is told of no batch
    return None if before is None or math.isnan(float(before.value)) else int(before.value)


def _cut(training_size: int | None, samples: int) -> int:
    if training_size is not None and 2 <= training_size <= samples // _BATCHES:
        return training_size
    return max(2, min(32, samples // _BATCHES))


def _layer(layer: str, activation: Activation, batch: int, cut: int, generator: torch.Generator) -> Iterator[Reading]:
    moved = activation.input.movedim(1, -1)  # a batch norm's channels, whatever the layer before makes of dimension 1
    noise = Noise.of(moved.reshape(len(moved), -1, moved.shape[-1]))
    if isinstance(activation.module, GhostBatchNorm):
        batch = min(ghost_sizes(batch, activation.module.ghost_size))
    n, values = noise.samples * noise.positions, batch * noise.positions
    live = noise.variance != 0  # nan is no constant, and makes the layer's numbers nan
    design, error = average(noise.design, live), noise.design_error(live)
    enough = noise.samples >= 2 * cut
    law = noise.deviation_noise(cut, live & (noise.excess_kurtosis != -2), generator) if enough else (math.nan,) * 2
    yield Reading("mean_noise", design, error=error, layer=layer, n=n)
    yield Reading("std_noise", law[0], error=law[1], layer=layer, n=n)
    yield Reading("excess_kurtosis", average(noise.excess_kurtosis, live), layer=layer, n=n)
    yield Reading("batch_size", float(batch), layer=layer)
    yield Reading("values_per_channel", float(values), layer=layer)
    off = design / values
    relative = error / design if design else math.nan
    root, effective = math.sqrt(off), 1 / off if off else math.nan
    yield Reading("effective_values", effective, error=relative * effective, layer=layer, n=n)
    yield Reading("statistic_error", root, error=relative * root / 2, layer=layer, n=n)
    yield Reading("batch_error", off, error=relative * off, layer=layer, n=n)
    yield from gap_readings(layer, activation.module, noise, batch, off)


def _losses(risk: EmpiricalRisk) -> Iterator[Reading]:
    """Take the loss with running statistics and with the batch's, and both on parts of the data for their errors."""
    n = risk.samples
    with at_the_mean(risk.model):
        still = _loss(risk)
        with training(risk.model, _switches):
            moving = _loss(risk) if n > 1 else torch.full_like(still, torch.nan)  # one sample has no variance
    for name, parts in (("loss_train", moving), ("loss_eval", still), ("loss_gap", still - moving)):
        yield Reading(name, float(parts[0]), error=standard_error(parts[1:]), n=n)


def _switches(module: nn.Module) -> bool:
    return is_normalization(module) and not isinstance(module, IndependentComponent)


def _loss(risk: EmpiricalRisk) -> Tensor:
    """Return the loss of the one batch of a risk, and behind it those of equal parts of its samples."""
    (batch,) = risk.batches()
    outputs, targets = next(iter(risk.outputs()))
    with torch.no_grad():
        found = [risk.output_loss(outputs, batch)]
        cut = all(isinstance(part, Tensor) and part.ndim and len(part) == risk.samples for part in (outputs, targets))
        size = risk.samples // _PARTS
        if cut and size:
            pieces = zip(outputs.split(size), targets.split(size), strict=True)
            found += [risk.output_loss(part, (None, wanted)) for part, wanted in list(pieces)[:_PARTS]]
    return torch.stack([one.detach().double().cpu() for one in found])
