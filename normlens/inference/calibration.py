"""Noise-aware normalization: the running statistics of a trained model, taken anew where it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normlens.inference.batch_statistics import observed, pooled_layers, set_moments, stored_moments
from normlens.nn.functional import Moments
from normlens.nn.running import update_running
from normlens.nn.synchronized import total_moments
from normlens.risk import EmpiricalRisk
from normlens.typing import Data

__all__ = ["calibrate_batchnorm", "calibrate_risk", "pooled_moments"]


def calibrate_batchnorm(
    model: nn.Module,
    data: Data,
    *,
    noise: AbstractContextManager[object] | None = None,
    batches: int | None = None,
    momentum: float | None = None,
    layerwise: bool = False,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    r"""Take the running mean and variance of every batch norm anew over data, in place, and return the model.

    Noise on the weights, quantization or another kind of data shifts what enters a normalization; its statistics are
    taken again under just these conditions. Over batches ``b`` of ``n_b`` values per channel with mean ``m_b`` and
    biased variance ``v_b`` (law of total variance)

    .. math:: n = \sum_b n_b, \qquad \mu = \tfrac1n \sum_b n_b m_b, \qquad
        \sigma^2 = \tfrac{1}{n-1} \sum_b n_b \left(v_b + (m_b - \mu)^2\right),

    unbiased, as PyTorch keeps it. Averaging the ``v_b`` alone would leave out how far the batches lie apart.

    One pass takes all layers, each of them fed by layers that normalize by the batch itself: exact for one batch, and
    for the first layer. With ``layerwise`` the model runs as it will run, as many times as there are layers, and the
    statistics are exact for every layer, whatever the batches. Under noise that is drawn at every forward pass they
    are averages over it. The statistics are those of this process; where several share a batch, calibrate one.

    Weights, ``weight``, ``bias``, ``num_batches_tracked``, ``momentum``, modes and random states stay; dropout is off.
    Layers: see :func:`normlens.inference.batch_statistics.pooled_layers`. No label is looked at.

    Source: Tsai, Chang, Chen, Pan, Wei and Juan, arXiv:2007.03230, without code.

    Args:
        model: what is calibrated.
        data: one batch, several, or a loader that can be iterated again. A batch is a pair (inputs, targets) or the
            inputs alone; in a list pair them with None, ``[(x, None), ...]``: a list of bare tensors is one batch.
        noise: under which the model runs meanwhile, e.g. a ``WeightNoise``; None where it is on already, or for none.
        batches: how many of the batches; None for all.
        momentum: None pools all values as above; a number lets the stored statistics follow batch by batch instead,
            ``running' = (1 - momentum) running + momentum batch``.
        layerwise: see above; without momentum.
        forward: ``forward(model, inputs)``; by default the model is called.

    Raises:
        ValueError: the model keeps no such statistics, or some of another sense; there is no batch, one value per
            channel, or a momentum outside (0, 1] or together with ``layerwise``.
    """
    risk = EmpiricalRisk(model, _no_loss, data, forward=forward, mode="eval")
    if batches is not None:
        taken = list(itertools.islice(risk.batches(), batches))
        risk = EmpiricalRisk(model, _no_loss, taken, forward=forward, mode="eval")
    with noise or nullcontext():
        calibrate_risk(risk, momentum=momentum, layerwise=layerwise)
    return model


def calibrate_risk(risk: EmpiricalRisk, *, momentum: float | None = None, layerwise: bool = False) -> None:
    """Do what :func:`calibrate_batchnorm` does with the model, the data and the forward pass of a risk.

    Args:
        risk: in eval mode.
        momentum: see there.
        layerwise: see there.

    Raises:
        ValueError: see there; or the risk is not in eval mode.
    """
    layers = pooled_layers(risk.model, what="calibration")
    if not layers:
        raise ValueError(
            "calibration needs a batch norm with running statistics; the model has none; "
            "build it with track_running_stats=True"
        )
    if momentum is not None and not 0 < momentum <= 1:
        raise ValueError(f"calibration needs a momentum in (0, 1]; got {momentum}; None pools all batches alike")
    if momentum is not None and layerwise:
        raise ValueError(
            f"calibration needs momentum=None with layerwise=True, whose passes would each move the average on; got "
            f"{momentum}; choose one of them"
        )
    for _ in range(len(layers) if layerwise else 1):
        moments = pooled_moments(risk, layers, momentum=momentum, by_batch=not layerwise)
        if not _store(layers, moments):
            return


def pooled_moments(
    risk: EmpiricalRisk,
    layers: dict[str, nn.Module],
    *,
    momentum: float | None = None,
    by_batch: bool = False,
    use: Callable[[Any, Any], object] | None = None,
) -> dict[str, Moments]:
    """Return mean and unbiased variance of what enters each layer, over all data of a risk; nothing is stored.

    Args:
        risk: in eval mode.
        layers: some of :func:`normlens.inference.batch_statistics.pooled_layers`.
        momentum: see :func:`calibrate_batchnorm`.
        by_batch: whether the layers normalize by the batch meanwhile, and not by what they have stored.
        use: ``use(outputs, targets)``, called with what the model makes of each batch.

    Raises:
        ValueError: the risk is not in eval mode, it has no data, or a layer is never called.
    """
    if risk.mode != "eval":
        raise ValueError(f"statistics for inference need a model in eval mode; got {risk.mode!r}; pass mode='eval'")
    gathered = {layer: _Gathered() for layer in layers.values()}

    def seen(layer: nn.Module, count: int, moments: Moments) -> None:
        gathered[layer].add(count, moments)
        if by_batch:
            set_moments(layer, moments)

    with observed(layers, seen):
        for outputs, targets in risk.outputs():
            if use is not None:
                use(outputs, targets)
    if missing := [name for name, layer in layers.items() if not gathered[layer].counts]:
        raise ValueError(
            f"statistics need at least one batch through every layer; got none at {', '.join(missing)}; "
            "pass data (not an exhausted iterator), and take unused layers out of the model"
        )
    return {name: gathered[layer].result(stored_moments(layer), momentum) for name, layer in layers.items()}


@dataclass
class _Gathered:
    """The moments of each call of one layer."""

    counts: list[int] = field(default_factory=list)
    moments: list[Moments] = field(default_factory=list)

    def add(self, count: int, moments: Moments) -> None:
        self.counts.append(count)
        self.moments.append(moments)

    def result(self, stored: Moments, momentum: float | None) -> Moments:
        shards = Moments(*(torch.stack(list(parts)).cpu().double() for parts in zip(*self.moments, strict=True)))
        if momentum is None:
            total, n = total_moments(torch.tensor(self.counts).double(), shards), sum(self.counts)
            return Moments(total.mean, total.var * (n / (n - 1)))
        running = Moments(*(moment.cpu().double() for moment in stored))
        for count, mean, var in zip(self.counts, *shards, strict=True):
            running = update_running(running, Moments(mean, var), count=count, factor=momentum)
        return running


@torch.no_grad()
def _store(layers: dict[str, nn.Module], moments: dict[str, Moments]) -> bool:
    """Copy the moments into the buffers, and say whether that changed any of them."""
    changed = False
    for name, layer in layers.items():
        values = {"running_mean": moments[name].mean, "running_var": moments[name].var}
        values["running_std"] = (moments[name].var + float(getattr(layer, "eps", 0.0))).sqrt()
        for key, buffer in layer.named_buffers(recurse=False):
            if key in values:
                before = buffer.clone()
                buffer.copy_(values[key])
                changed = changed or not torch.equal(before, buffer)
    return changed


def _no_loss(outputs: object, targets: object) -> Tensor:
    raise NotImplementedError("calibration evaluates no loss")
