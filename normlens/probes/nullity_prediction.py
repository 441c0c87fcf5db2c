"""How singular the Fisher matrix of a hidden layer must be, from what is known of each unit alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normlens.probes.module_kinds import flat_below_zero
from normlens.probes.unit_block import HiddenLayer, outgoing_jacobian

__all__ = ["Prediction", "predict_rank"]


class Prediction(NamedTuple):
    r"""What the units' weights and activations say of the rank of their block of the Fisher matrix.

    The derivatives by the weights of k units that overlap, with outgoing weights A (k, o) of rank r, are :math:`A^\top
    dw\,\phi'(z)h` and :math:`da\,\phi(z)`: of rank :math:`rD + o`. D is the rank of what the units see where they are
    not flat, o that of the derivatives by the outgoing weights of one of them. Take off r where the nonlinearity is
    positively homogeneous, for a unit's scale may go to either side, and o where :math:`\phi(z) = 0` on all data.
    Subtracted from their k (d + o) parameters that leaves, for D = d and a smooth nonlinearity, d at an outgoing
    elimination, o at an incoming one, d + o for two units that overlap (o where their outgoing weights are not
    parallel), and everything for a dead unit. For o = 1 these are d, 1, d + 1 and d_in + 1 + d_out.

    Of the reader's outputs only the directions count that reach the network's (all but a common shift under a softmax).
    Ranks of clusters are added: where clusters depend on each other, the block has less.

    Attributes:
        rank: of the block.
        regular: the rank it would have with the same inputs and outputs if no unit were singular.
        dead: units that pass no derivative on for any sample.
        outgoing: live units without outgoing weights.
        incoming: live units whose activation is zero for every sample.
        overlapping: live units that are a multiple of another one.
        seldom: live units that are on so seldom that what they see then spans less than what they see at all.
    """

    rank: int
    regular: int
    dead: int
    outgoing: int
    incoming: int
    overlapping: int
    seldom: int


def predict_rank(layer: HiddenLayer, units: Tensor, tolerance: float) -> Prediction | None:
    r"""Count the rank of the units' block of the Fisher matrix, None behind a norm that is not one affine map a unit.

    Source: Wei et al., Neural Computation 20(3), 2008, for the singularities; the counts are ours.

    Args:
        layer: the hidden layer.
        units: their indices.
        tolerance: of the eigenvalues; angles and sizes below its root count as zero.
    """
    if layer.norm not in ("", "BatchNorm"):
        return None
    state = _state(layer, units, tolerance)
    dead, cut, silent = (int(kind.sum()) for kind in (state.dead, state.cut & ~state.dead, state.silent & ~state.dead))
    count = Prediction(0, 0, dead, cut, silent, 0, 0)
    for cluster in _clusters(layer, units, state, tolerance):
        first = cluster[0]
        regular = state.whole + state.outgoing.shape[1] - state.homogeneous(first, tolerance, gated=False)
        several = len(cluster) if len(cluster) > 1 and not state.silent[first] else 0
        d = state.sight(first, tolerance)
        rank = 0 if state.dead[first] else _cluster_rank(layer, units, state, cluster, d, tolerance)
        count = count._replace(
            rank=count.rank + rank,
            regular=count.regular + len(cluster) * regular,
            overlapping=count.overlapping + several,
            seldom=count.seldom + (len(cluster) if 0 < d < state.whole else 0),
        )
    return count


@dataclass(frozen=True)
class _State:
    """Of the chosen units: what they see and show, where they are flat, and which of them are singular."""

    seen: Tensor
    entered: Tensor
    gates: Tensor
    scales: bool
    reached: Tensor
    outgoing: Tensor
    whole: int
    pooled: bool
    dead: Tensor
    cut: Tensor
    silent: Tensor

    def sight(self, unit: int, tolerance: float) -> int:
        """Return the rank of what a unit sees where it is not flat; pooled, no more than one place a sample."""
        d = _rank((self.gates[..., unit, None] * self.seen).flatten(0, 1), tolerance)
        return min(d, len(self.seen)) if self.pooled else d

    def homogeneous(self, unit: int, tolerance: float, *, gated: bool) -> int:
        """Return 1 if a unit's scale can go from its incoming to its outgoing weights: z is linear in what it sees."""
        if not self.scales or self.entered.shape[1] != self.seen.shape[1]:
            return 0
        gate = self.gates[..., unit, None] if gated else torch.ones_like(self.gates[..., unit, None])
        seen, z = ((gate * rows).flatten(0, 1) for rows in (self.seen, self.entered[..., unit, None]))
        if not bool(z.any()):
            return 1
        z = z * (seen.norm() / z.norm())
        return int(_rank(torch.cat([seen, z], 1), tolerance) == _rank(seen, tolerance))


def _state(layer: HiddenLayer, units: Tensor, tolerance: float) -> _State:
    small, gates, seen = tolerance**0.5, _gates(layer)[..., units], layer.seen()
    reached, weights = _reached(layer, tolerance), layer.weights_out(units)
    outgoing = torch.einsum("or,uok->urk", reached, weights).flatten(1)
    sizes = layer.activation.output_samples.square().mean((0, 1)).sqrt()
    whole = _rank(seen.flatten(0, 1), tolerance)
    return _State(
        seen,
        layer.activation.input_samples[..., units],
        gates,
        _scales(layer.activation.module),
        reached,
        outgoing,
        min(whole, len(seen)) if layer.pooled else whole,
        layer.pooled,
        dead=(gates == 0).all(1).all(0),
        cut=outgoing.norm(dim=1) <= small * float(weights.flatten(1).norm(dim=1).max()),
        silent=sizes[units] <= small * float(sizes.max()),
    )


def _cluster_rank(
    layer: HiddenLayer, units: Tensor, state: _State, cluster: list[int], d: int, tolerance: float
) -> int:
    first = cluster[0]
    r = 0 if bool(state.cut[cluster].all()) else _rank(state.outgoing[cluster], tolerance)
    if state.silent[first]:
        return r * d
    size = _rank(outgoing_jacobian(layer, units[[first]]).flatten(1), tolerance)
    return r * d + size - r * state.homogeneous(first, tolerance, gated=True)


def _gates(layer: HiddenLayer) -> Tensor:
    """Return the derivative of the nonlinearity for all inputs, (N, P, units); ones where it lies behind a pool."""
    module, entered = layer.activation.module, layer.activation.input.detach().clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(module(entered.clone()).sum(), entered)  # elementwise
    by_channel = replace(layer.activation, input=slope).input_samples
    positions = layer.seen().shape[1]
    return by_channel if by_channel.shape[1] == positions else torch.ones_like(by_channel[:, :1])


def _reached(layer: HiddenLayer, tolerance: float) -> Tensor:
    """Return an orthonormal basis of the reader's outputs that the network's outputs depend on, (o, r)."""
    slopes = torch.stack(layer.read.slopes).flatten(0, 2)
    values, vectors = torch.linalg.eigh(slopes.T @ slopes)
    kept: Tensor = vectors[:, values > tolerance * values[-1]] if values[-1] > 0 else vectors[:, :0]
    return kept


def _scales(module: nn.Module) -> bool:
    plain = flat_below_zero(module) and not isinstance(module, nn.ReLU6 | nn.Threshold)
    return plain or isinstance(module, nn.LeakyReLU | nn.PReLU | nn.Identity)


def _clusters(layer: HiddenLayer, units: Tensor, state: _State, tolerance: float) -> list[list[int]]:
    """Group units whose incoming weights and activations are multiples of each other's, and the silent ones."""
    rows = [layer.weights_in(units), layer.activation.output_samples[..., units].flatten(0, 1).T]
    unit = [row / row.norm(dim=1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny) for row in rows]
    same = torch.stack([(u @ u.T).abs() > 1 - tolerance for u in unit]).all(0)
    silent = state.silent & ~state.dead
    same &= ~(silent[:, None] | silent[None, :] | state.dead[:, None] | state.dead[None, :])
    same |= silent[:, None] & silent[None, :]
    clusters: list[list[int]] = []
    for index in range(len(units)):
        home = next((cluster for cluster in clusters if bool(same[index, cluster[0]])), None)
        clusters.append([index]) if home is None else home.append(index)
    return clusters


def _rank(rows: Tensor, tolerance: float) -> int:
    """Return how many eigenvalues of the rows' Gram matrix are above the tolerance times the largest."""
    small = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    values = torch.linalg.eigvalsh(small)
    return int((values > tolerance * values[-1]).sum()) if len(values) and values[-1] > 0 else 0
