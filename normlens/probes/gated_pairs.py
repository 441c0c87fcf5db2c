"""Pairs of values in front of and behind a dropout, one position per sample, and what is read off them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normlens.probes.gates import Gate
from normlens.probes.paired_information import (
    Information,
    Variables,
    pair_information,
    pooled_ratio,
    shuffled,
    thinned,
)
from normlens.run.reading import Reading

__all__ = ["Look", "correlations", "gate_entropy", "information_before", "level", "pair_readings", "shuffled_channels"]

MASKED = 3
"""Times the level of no dependence that a denominator must reach."""


@dataclass(frozen=True)
class Look:
    """Channels at one random position of each sample, and at the position next to it: samples stay independent.

    Attributes:
        before: in front of the gates, at the one and at the other.
        after: behind them.
    """

    before: tuple[Variables, Variables]
    after: tuple[Variables, Variables]

    @classmethod
    def at_random(cls, gate: Gate, channels: Tensor, generator: torch.Generator) -> Look:
        """Draw the positions.

        Args:
            gate: where.
            channels: which ones.
            generator: of the positions.
        """
        before, after = gate.before, gate.after
        n, positions, _ = before.shape
        drawn = torch.randint(positions, (n,), generator=generator, device=generator.device).to(before.device)
        samples = torch.arange(n, device=before.device)
        places = (drawn, (drawn + 1) % positions)
        first, second = (Variables.of(before[samples, place][:, channels].T) for place in places)
        behind = [after[samples, place][:, channels].T for place in places]
        return cls((first, second), (first.gated(behind[0]), second.gated(behind[1])))


def shuffled_channels(values: Tensor, seed: int) -> Tensor:
    """Return the channels of ``(samples, positions, C)`` that vary at all, in an order that the seed decides."""
    order = torch.randperm(values.shape[2], generator=torch.Generator().manual_seed(seed)).to(values.device)
    flat = values.flatten(0, 1)[:, order]
    return order[flat.amax(0) > flat.amin(0)]


def correlations(gates: Sequence[Gate], left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the correlation of each pair of channels in front of the gates, behind them, and as predicted.

    :math:`p c_{ij} / \sqrt{(1 + (1-p) m_i^2/s_i^2)(1 + (1-p) m_j^2/s_j^2)}` with the moments in front of them (Theorem
    B), exact in the mean over independent gates for any x.

    Args:
        gates: of one dropout, in several passes.
        left: channels, ``(pairs,)``.
        right: channels, ``(pairs,)``.
    """
    joined = []
    for side in ("before", "after"):
        values = torch.cat([getattr(gate, side).flatten(0, 1) for gate in gates])
        joined.append((values[:, left].double(), values[:, right].double()))
    (x, y), (gated_x, gated_y) = joined
    plain, keep = _correlation(x, y), gates[0].keep_prob
    loss = [1 + (1 - keep) * v.mean(0).square() / v.var(0, correction=0) for v in (x, y)]
    return plain, _correlation(gated_x, gated_y), keep * plain / (loss[0] * loss[1]).sqrt()


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(0), y - y.mean(0)
    return (x * y).mean(0) / (x.square().mean(0) * y.square().mean(0)).sqrt()


def information_before(x: Variables, y: Variables, part: float, generator: torch.Generator, seed: int) -> Information:
    """Return the information of each pair from as many samples as gates leave.

    Args:
        x: of as many variables as there are pairs.
        y: as many.
        part: of the samples that the gates leave.
        generator: of the samples taken.
        seed: of the order of equal values.
    """
    return thinned(lambda rows: pair_information(x.at(rows), y.at(rows), seed=seed), shuffled(x, generator), part)


def level(x: Variables, y: Variables, permutations: int, part: float, generator: torch.Generator) -> float:
    """Return what 95 % of the estimates for permuted pairs stay below, all pairs together; nan for too few samples.

    Args:
        x: of as many variables as there are pairs.
        y: as many.
        permutations: of each pair.
        part: of the samples that an estimate has.
        generator: of the permutations.
    """
    found = []
    n = max(1, round(part * x.values.shape[1]))
    for _ in range(permutations):
        orders = (shuffled(x, generator)[:, :n], shuffled(y, generator)[:, :n])
        found.append(pair_information(x.at(orders[0]), y.at(orders[1]), seed=0).values)
    ascending = np.sort(np.concatenate(found))
    rank = -(-95 * (len(ascending) + 1) // 100)  # as of a permutation test; the largest where they are too few for it
    return float(ascending[min(rank, len(ascending)) - 1])


def pair_readings(before: Information, after: Information, *, prefix: str = "") -> Iterator[Reading]:
    """Yield estimates and errors of each pair, and their pooled ratio.

    Args:
        before: in front of the gates.
        after: behind them.
        prefix: of the names.
    """
    n = before.pointwise.shape[1]
    for name, found in (("before", before), ("after", after)):
        yield Reading(f"{prefix}{name}", found.values, units="nats", dims=("pair",), n=n)
        yield Reading(f"{prefix}{name}_error", found.errors, units="nats", dims=("pair",), n=n)
    ratio, error = pooled_ratio(after, before)
    yield Reading(f"{prefix}ratio", ratio, error=error, n=n)


def gate_entropy(keep_prob: float) -> float:
    """Return the entropy of a gate in nats."""
    return -keep_prob * math.log(keep_prob) - (1 - keep_prob) * math.log(1 - keep_prob)
