"""How little single units add: their weights' norms and angles, and how nearly their activations are dependent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from normlens.nn.functional import promote
from normlens.optim.weight_layers import WeightLayer
from normlens.run.reading import Reading

__all__ = ["dependence_readings", "incoming_readings", "outgoing_readings"]

ROWS = 16_384
"""Activations of each unit at most, taken at even distances."""

UNITS = 1024
"""Units at most of which a Gram matrix is decomposed: a tenth of a second on one core."""

TAIL = 0.1
"""Share of the smallest eigenvalues that Orhan and Pitkow's measure of linear dependence is taken over here."""


@torch.no_grad()
def incoming_readings(layer: str, writer: WeightLayer) -> Iterator[Reading]:
    r"""Read ``incoming_norm`` :math:`\|w_c\|`, ``overlap`` :math:`\max_{j \ne c}|\cos(w_c, w_j)|`, ``overlap_mean``.

    ``overlap_mean`` is the mean correlation coefficient over all pairs of units. Weights without the bias; a single
    unit has a norm alone.

    Args:
        layer: whose units.
        writer: the layer whose rows are the units' incoming weights.
    """
    rows = promote(writer.weight.detach()).flatten(1)
    yield Reading("incoming_norm", rows.norm(dim=1).double().cpu().numpy(), layer=layer, dims=("channel",))
    if (pairs := len(rows) * (len(rows) - 1)) == 0:
        return
    nearest = _cosines(rows).abs().fill_diagonal_(0).amax(1)
    yield Reading("overlap", nearest.double().cpu().numpy(), layer=layer, dims=("channel",))
    correlation = _cosines(rows - rows.mean(1, keepdim=True))
    yield Reading("overlap_mean", float((correlation.sum() - correlation.trace()) / pairs), layer=layer)


@torch.no_grad()
def outgoing_readings(layer: str, units: int, readers: Sequence[WeightLayer]) -> Iterator[Reading]:
    r"""Read ``outgoing_norm`` :math:`\|a_c\|` of each unit, over all layers that read it.

    Args:
        layer: whose units.
        units: how many.
        readers: layers whose columns, several for each unit behind a flattened image, are the outgoing weights.
    """
    columns = [promote(reader.weight.detach()).reshape(len(reader.weight), units, -1) for reader in readers]
    norm = torch.stack([column.square().sum((0, 2)) for column in columns]).sum(0).sqrt()
    yield Reading("outgoing_norm", norm.double().cpu().numpy(), layer=layer, dims=("channel",))


@torch.no_grad()
def dependence_readings(layer: str, samples: Tensor) -> Iterator[Reading]:
    r"""Read how nearly the units' activations h are linearly dependent on the data.

    ``dependence`` :math:`\lambda_{\min}/\lambda_{\max}` of the Gram matrix :math:`E[hh^\top]`, 0 where one unit is a
    linear combination of others (or dead) for all data; what is below the rounding, C eps, is 0. ``covariance_tail`` is
    the mean of the smallest tenth (at least one) of the eigenvalues of the covariance, in the units of h squared. Left
    out for more units than activations, which would be dependent on any data, or than :data:`UNITS`; of at most
    :data:`ROWS` activations.

    Args:
        layer: whose units.
        samples: activations (samples, positions, channels).
    """
    rows = samples.flatten(0, 1)
    rows = rows[:: -(-len(rows) // ROWS)].double()
    n, units = rows.shape
    if units > min(n, UNITS):
        return
    ratio = tail = math.nan
    if bool(rows.isfinite().all()):
        second, mean = rows.T @ rows / n, rows.mean(0)
        values = torch.linalg.eigvalsh(second)
        floor = units * torch.finfo(values.dtype).eps * values[-1]
        ratio = float(values[0] / values[-1]) if values[0] > floor else 0.0
        spread = torch.linalg.eigvalsh(second - torch.outer(mean, mean))
        tail = float(spread[: max(1, math.floor(TAIL * units))].clamp_min(0).mean())
    yield Reading("dependence", ratio, layer=layer, n=n)
    yield Reading("covariance_tail", tail, layer=layer, n=n)


def _cosines(rows: Tensor) -> Tensor:
    """Return the cosines of all pairs; a row of zeros has none with any other."""
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    cosines: Tensor = (unit @ unit.T).clamp(-1, 1)
    return cosines
