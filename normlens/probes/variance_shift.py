"""VarianceShift: how much larger is the variance that a batch norm sees in training than the one it meets in use?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normlens.information.moments import Moments
from normlens.nn.vocabulary import is_normalization
from normlens.probes.gate_variance import variance_of_gates
from normlens.probes.gates import Gate, gates_in, train_pass
from normlens.probes.one_batch import first_batch
from normlens.run.capture import Activation, Layers, capture, choose
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["VarianceShift"]


@dataclass(frozen=True)
class VarianceShift:
    r"""Variance of what enters each batch norm: with dropout on, in eval mode, and as the running statistics have it.

    Two passes over the same samples, one in train mode (masks drawn, statistics of the batch) and one in eval mode,
    give the variances :math:`v^t_c, v^e_c` of each channel; with the running variance :math:`v_c`, as geometric means
    over the channels:

    * ``shift`` :math:`v^t_c / v^e_c`: 1 where nothing is dropped and the statistics upstream fit,
    * ``train_to_running`` :math:`v^t_c / v_c`: 1 where the running variance is up to date,
    * ``eval_to_running`` :math:`v^e_c / v_c`: what the layer gets wrong in use. Dropout makes it smaller than 1.

    ``shift_predicted`` is known where a linear layer or convolution without bias or with stands between the dropout
    and the norm. Given its inputs x, gates of their own and inverted dropout of keep probability p add

    .. math:: v^t_c - v^0_c = \tfrac{1-p}{p} \sum_i w_{ci}^2 E[x_i^2]

    to the variance :math:`v^0_c` without gates (for a gate shared by a channel the square of the channel's sum), so the
    ratio is :math:`1/p` for independent inputs of mean zero. It is that of this dropout alone. ``channel_shift`` has
    the channels one by one, ``layers`` and ``dropouts`` count what there is, ``dropouts_before`` what was called
    earlier. All dimensionless; channels without any variance are left out of the means. Errors take the sample as the
    independent unit (delta method, both passes together).

    Valid for layers with one running variance per channel at dimension 1 of their input. In the first steps the running
    variance is its initial 1, and the last two ratios mean little.
    Source: Li, Chen, Hu and Yang, CVPR 2019, arXiv:1801.05134 (the shift); the law for any inputs is the law of total
    variance.

    Args:
        layers: which batch norms; None for all.
        samples: how many of the probe data, taken as one batch.
    """

    layers: Layers = None
    samples: int = 256

    def cost(self, step: Step) -> float:
        """Two forward passes; a look at the modules where there is nothing to measure."""
        return 0.7 if any(_running_variance(module) is not None for module in step.risk.model.modules()) else 0.01

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: parameters are not finite, ``layers`` names nothing, or a batch norm gets a single value per
                channel.
        """
        risk = first_batch(step.risk, self.samples)
        if not all(bool(parameter.isfinite().all()) for parameter in risk.model.parameters()):
            raise ValueError("parameters must be finite for variances to be compared; some are not: measure before")
        if not any(_running_variance(module) is not None for module in risk.model.modules()):
            yield Reading("layers", 0.0)
            return
        seed = int(torch.randint(2**31, (), generator=step.generator, device=step.generator.device))
        used, trained = capture(risk.evaluated()), train_pass(risk, seed)
        gates = dict(gates_in(trained))
        norms = {n: a for n, a in choose(trained, self.layers).items() if _running_variance(a.module) is not None}
        yield Reading("layers", float(len(norms)))
        yield Reading("dropouts", float(len(gates)))
        order = list(trained)
        for name, seen in norms.items():
            if name in used:  # a loop may be longer in one mode than in the other
                before = sum(order.index(gate) < order.index(name) for gate in gates)
                yield Reading("dropouts_before", float(before), layer=name)
                yield from _ratios(name, seen, used[name])
                yield from _predicted(name, seen, trained, gates)


def _running_variance(module: nn.Module) -> Tensor | None:
    """Return the running variance of a normalization that keeps one for each channel."""
    found = getattr(module, "running_var", None) if is_normalization(module) else None
    return found if isinstance(found, Tensor) and found.ndim == 1 else None


def _ratios(layer: str, trained: Activation, used: Activation) -> Iterator[Reading]:
    running = _running_variance(trained.module)
    train, evaluated = (_LogVariance.of(_by_channel(seen.input)) for seen in (trained, used))
    n = len(train.influence)
    shift, error = train.minus(evaluated).mean()
    yield Reading("shift", shift, layer=layer, error=error, n=n)
    kept = _LogVariance.known(running, n) if running is not None else train
    for name, logs in (("train_to_running", train), ("eval_to_running", evaluated)):
        value, error = logs.minus(kept).mean()
        yield Reading(name, value, layer=layer, error=error, n=n)
    channels = train.minus(evaluated).value.exp().cpu().numpy()
    yield Reading("channel_shift", channels, layer=layer, dims=("channel",), n=n)


def _predicted(
    layer: str, norm: Activation, trained: Mapping[str, Activation], gates: Mapping[str, Gate]
) -> Iterator[Reading]:
    """Follow the tensors back from the norm to a layer with weights, and from that to a dropout."""
    weights = next((a for a in trained.values() if a.output is norm.input), None)
    if weights is None:
        return
    source = weights.input
    flat = next((a for a in trained.values() if a.output is source and isinstance(a.module, nn.Flatten)), None)
    gate = next((g for g in gates.values() if g.activation.output is (source if flat is None else flat.input)), None)
    if gate is None or (gate.shared and flat is not None):
        return
    x = gate.activation.input.reshape(source.shape)
    found = variance_of_gates(weights.module, x, gate.keep_prob, shared=gate.shared)
    if found is not None:
        plain, added = found
        ratio = 1 + (added / plain)[plain > 0]
        yield Reading("shift_predicted", float(ratio.log().mean().exp()), layer=layer, n=len(x))


@dataclass(frozen=True)
class _LogVariance:
    """Logarithms of variances (C,), and how much each sample adds to them (N, C): relative deviations, of mean zero."""

    value: Tensor
    influence: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> _LogVariance:
        moments = Moments.of(samples)
        squares = [(chunk.double() - moments.mean).square().mean(1) for chunk in torch.split(samples, 64)]
        return cls(moments.variance.log(), torch.cat(squares) / moments.variance - 1)

    @classmethod
    def known(cls, variance: Tensor, samples: int) -> _LogVariance:
        value = variance.double().log()
        return cls(value, value.new_zeros(samples, len(value)))

    def minus(self, other: _LogVariance) -> _LogVariance:
        return _LogVariance(self.value - other.value, self.influence - other.influence)

    def mean(self) -> tuple[float, float]:
        """Return the geometric mean over the channels that vary, and its standard error."""
        varies = self.value.isfinite()
        value = float(self.value[varies].mean().exp())
        of_samples = self.influence[:, varies].mean(1)
        n = len(of_samples)
        return value, value * float(of_samples.std()) / math.sqrt(n) if n > 1 else math.nan


def _by_channel(x: Tensor) -> Tensor:
    """Bring ``(N, C, *spatial)``, as every batch norm has it, to (samples, positions, channels)."""
    return x.movedim(1, -1).reshape(len(x), -1, x.shape[1])
