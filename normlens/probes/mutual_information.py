"""MutualInformation: does dropout make channels more independent, as keep squared says it does?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from normlens.batch import split_batch
from normlens.information.mutual_information import binned_matrix, gaussian_copula_matrix
from normlens.probes.gated_pairs import (
    MASKED,
    Look,
    correlations,
    gate_entropy,
    information_before,
    level,
    pair_readings,
    shuffled_channels,
)
from normlens.probes.gates import Gate, gates_in, keep_probability, train_pass
from normlens.probes.one_batch import first_batch
from normlens.probes.paired_information import (
    Information,
    Variables,
    pair_information,
    pooled_ratio,
)
from normlens.risk import EmpiricalRisk
from normlens.run.capture import Layers, choose
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["MutualInformation"]


@dataclass(frozen=True)
class MutualInformation:
    r"""Mutual information of pairs of values in front of and behind each dropout, and what it tells of the labels.

    A pass in train mode over the probe data gives the values x that the gates multiply and :math:`\hat x = g x / p`
    behind them. Of each sample one position is taken, at random, so that samples are independent; the estimator is
    :func:`normlens.information.mutual_information.hurdle`, which knows atoms. In nats, for each dropout:

    * ``before``, ``after`` and their errors: I of two channels at the same position, for disjoint ``pairs`` of them;
      ``ratio`` is the sum behind over the sum in front, ``ratio_predicted`` :math:`p^2`. That is exact for independent
      gates and values that are never zero. Where they are (``zeros`` is the part; ReLU before dropout) it is an upper
      bound: a zero hides its gate.
    * ``within_…``: the same for two neighboring positions of one channel. A gate that they share (``Dropout2d``) makes
      them more dependent: :math:`p I + H_b(p)` instead of :math:`p^2 I`, with
      :math:`H_b = -p \ln p - (1-p) \ln(1-p)`.
    * ``correlation_before``, ``_after`` and what Theorem B predicts, with means m and deviations s of the channels,
      :math:`p c_{ij} / \sqrt{(1 + (1-p) m_i^2/s_i^2)(1 + (1-p) m_j^2/s_j^2)}`.
    * ``label_before``, ``label_after``: the mean over channels of the information on the label, and ``label_ratio``:
      p or less, the price. Where the targets are one whole number per sample.
    * ``null``: the level that 95 % of the estimates stay below when the samples of y are permuted; ``pair_ratio`` is
      given for pairs whose denominator is at least three times that. ``untrusted`` counts pairs with too few samples.
    * ``matrix_before``, ``matrix_after`` where asked for: of all channels, all samples taken. gaussian_copula knows no
      atoms, and behind gates is an index of dependence at most; binned loses what is above half a nat.

    Estimates by neighbors drift with the number of samples, so those before the gates are made from as many samples
    as gates leave of a pair (means over disjoint parts of them). Masks come from passes of our own; ``draws`` of them
    on the same samples are averaged, and the errors still count the samples alone: by the delta method, those of means
    and ratios times 1.3 for what neighbors have in common. ``layers`` counts the dropouts and independent-component
    layers that are on.

    Source: Chen et al., arXiv:1905.05928, for :math:`p^2`; scope, shared gates and Theorem B are derived.

    Args:
        layers: which dropouts; None for all.
        pairs: how many of each kind, at most.
        draws: passes with masks of their own.
        permutations: of each pair, for ``null``.
        matrix: estimator of the whole matrix, or "none".
        samples: how many of the probe data at most, taken as one batch; ratios want a thousand and more.
        seed: of the choice of channels, the same at every step.
    """

    layers: Layers = None
    pairs: int = 8
    draws: int = 1
    permutations: int = 3
    matrix: Literal["none", "gaussian_copula", "binned"] = "none"
    samples: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.pairs, self.draws, self.permutations) < 1:
            raise ValueError(
                f"MutualInformation needs pairs, draws and permutations of at least 1; got {self.pairs}, {self.draws} "
                f"and {self.permutations}; 8, 1 and 3 are the defaults"
            )

    def cost(self, step: Step) -> float:
        """Estimates by neighbors, two or three gradients for each dropout; a look at the modules without any."""
        return 0.01 + 2.5 * self.draws * sum(keep_probability(m) is not None for m in step.risk.model.modules())

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: parameters or activations are not finite, or ``layers`` names nothing.
        """
        risk = first_batch(step.risk, self.samples)
        if not all(bool(parameter.isfinite().all()) for parameter in risk.model.parameters()):
            raise ValueError("parameters must be finite for an information to exist; some are not: measure before")
        if all(keep_probability(module) is None for module in risk.model.modules()):
            yield Reading("layers", 0.0)
            return
        passes = [self._gates(risk, step.generator) for _ in range(self.draws)]
        yield Reading("layers", float(len(passes[0])))
        labels = _labels(risk)
        for name in passes[0]:
            for reading in self._of_layer([gates[name] for gates in passes], labels, step.generator):
                yield replace(reading, layer=name)

    def _gates(self, risk: EmpiricalRisk, generator: torch.Generator) -> dict[str, Gate]:
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        return dict(gates_in(choose(train_pass(risk, seed), self.layers)))

    def _of_layer(self, gates: Sequence[Gate], labels: Tensor | None, generator: torch.Generator) -> Iterator[Reading]:
        first = gates[0]
        n, positions, _ = first.before.shape
        yield Reading("keep_prob", first.keep_prob)
        yield Reading("zeros", float((first.before == 0).double().mean()), n=n)
        chosen = shuffled_channels(first.before, self.seed)[: 2 * self.pairs]
        looks = [Look.at_random(gate, chosen, generator) for gate in gates]
        if len(chosen) > 1:
            yield from self._across(gates, looks, chosen, generator)
        if positions > 1 and len(chosen):
            yield from self._within(first, looks, generator)
        if labels is not None and len(chosen):
            yield from self._of_labels(first.keep_prob, looks, labels, generator)
        if self.matrix != "none":
            yield from self._matrices(first, generator)

    def _across(
        self, gates: Sequence[Gate], looks: Sequence[Look], channels: Tensor, generator: torch.Generator
    ) -> Iterator[Reading]:
        """Yield what there is to say of pairs of channels: one of the first half with one of the second."""
        half = len(channels) // 2
        left, right = slice(half), slice(half, 2 * half)
        keep = gates[0].keep_prob
        before = self._before(((look.before[0][left], look.before[0][right]) for look in looks), keep**2, generator)
        after = self._after((look.after[0][left], look.after[0][right]) for look in looks)
        yield from pair_readings(before, after)
        yield Reading("ratio_predicted", keep**2)
        x = looks[0].before[0]
        null = level(x[left], x[right], self.permutations, keep**2, generator)
        yield Reading("null", null, units="nats", n=half * self.permutations)
        enough = before.values >= MASKED * null
        ratios = np.divide(after.values, before.values, out=np.full(half, np.nan), where=enough)
        yield Reading("pair_ratio", ratios, dims=("pair",), n=before.pointwise.shape[1])
        yield Reading("untrusted", float((~(before.trusted & after.trusted)).sum()))
        names = ("correlation_before", "correlation_after", "correlation_predicted", "first_channel", "second_channel")
        found = (*correlations(gates, channels[left], channels[right]), channels[left], channels[right])
        for name, values in zip(names, found, strict=True):
            yield Reading(name, values.cpu().numpy(), dims=("pair",))

    def _within(self, gate: Gate, looks: Sequence[Look], generator: torch.Generator) -> Iterator[Reading]:
        """Yield what there is to say of neighbors within a channel."""
        some, keep = slice(self.pairs), gate.keep_prob
        part = keep if gate.shared else keep**2
        before = self._before(((look.before[0][some], look.before[1][some]) for look in looks), part, generator)
        after = self._after((look.after[0][some], look.after[1][some]) for look in looks)
        yield from pair_readings(before, after, prefix="within_")
        mean, error = before.pooled()
        if not gate.shared:
            yield Reading("within_ratio_predicted", keep**2)
            return
        known = mean > 3 * error  # as for the ratio itself
        raised = gate_entropy(keep) / mean if known else math.nan
        yield Reading("within_ratio_predicted", keep + raised, error=raised * error / mean if known else math.nan)

    def _of_labels(
        self, keep: float, looks: Sequence[Look], labels: Tensor, generator: torch.Generator
    ) -> Iterator[Reading]:
        y = [(look.before[0][: self.pairs], look.after[0][: self.pairs]) for look in looks]
        classes = Variables.of_labels(labels, len(y[0][0].values))
        before = self._before(((classes, values) for values, _ in y), keep, generator)
        after = self._after((classes, gated) for _, gated in y)
        n = len(labels)
        for name, (value, error) in (("label_before", before.pooled()), ("label_after", after.pooled())):
            yield Reading(name, value, error=error, units="nats", n=n)
        ratio, error = pooled_ratio(after, before)
        yield Reading("label_ratio", ratio, error=error, n=n)

    def _matrices(self, gate: Gate, generator: torch.Generator) -> Iterator[Reading]:
        estimate = gaussian_copula_matrix if self.matrix == "gaussian_copula" else binned_matrix
        n, positions, channels = gate.before.shape
        places = torch.randint(positions, (n,), generator=generator, device=generator.device).to(gate.before.device)
        for name, values in (("matrix_before", gate.before), ("matrix_after", gate.after)):
            chosen = values[torch.arange(n, device=values.device), places]
            found = estimate(chosen).values.cpu().numpy() if n > 1 else np.full((channels, channels), np.nan)
            yield Reading(name, found, units="nats", dims=("channel", "other_channel"), n=n)

    def _before(
        self, pairs: Iterable[tuple[Variables, Variables]], part: float, generator: torch.Generator
    ) -> Information:
        return Information.mean([information_before(x, y, part, generator, self.seed) for x, y in pairs])

    def _after(self, pairs: Iterable[tuple[Variables, Variables]]) -> Information:
        return Information.mean([pair_information(x, y, seed=self.seed) for x, y in pairs])


def _labels(risk: EmpiricalRisk) -> Tensor | None:
    """Return the targets where they are one whole number per sample, of at least two values and fewer than samples."""
    (batch,) = risk.batches()
    targets = split_batch(batch)[1]
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        return None
    return targets if 1 < len(torch.unique(targets)) < len(targets) else None
