"""Pairs of variables whose mutual information is known."""

from __future__ import annotations

import math

import torch
from scipy.integrate import quad
from scipy.special import ndtr, xlogy
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_pair(rho: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal, in float64."""
    x, z = torch.randn(2, n, generator=seeded(seed), dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * z


def gaussian_information(rho: float) -> float:
    return -0.5 * math.log(1 - rho**2)


def gates(keep: float, n: int, seed: int = 1000) -> tuple[Tensor, Tensor]:
    first, second = torch.rand(2, n, generator=seeded(seed)) < keep
    return first, second


def gated_table(joint: Tensor, keep: float, *, shared: bool = False) -> Tensor:
    """The joint table of two gated variables: their first symbol is the zero of a closed gate."""
    p = torch.zeros(joint.shape[0] + 1, joint.shape[1] + 1, dtype=torch.float64)
    p[1:, 1:] = joint * (keep if shared else keep**2)
    p[0, 0] = 1 - keep if shared else (1 - keep) ** 2
    if not shared:
        p[0, 1:], p[1:, 0] = keep * (1 - keep) * joint.sum(0), keep * (1 - keep) * joint.sum(1)
    return p


def merged(joint: Tensor) -> Tensor:
    """The table in which the second symbol of both variables is their first one: x has an atom at zero itself."""
    rows = torch.cat([joint[:1] + joint[1:2], joint[2:]])
    return torch.cat([rows[:, :1] + rows[:, 1:2], rows[:, 2:]], 1)


def random_table(rows: int, columns: int, seed: int) -> Tensor:
    p = torch.rand(rows, columns, generator=seeded(seed), dtype=torch.float64) ** 3
    return p / p.sum()


def rectified_information(rho: float, keep: float = 1.0) -> float:
    """The information of a Gaussian pair behind ReLU and independent gates, by one quadrature.

    Both are zero, or one is, or none: the last term is a moment of the Gaussian over the first quadrant.
    """
    spread, zero = math.sqrt(1 - rho**2), 1 - keep / 2
    both = keep**2 * (0.25 + math.asin(rho) / (2 * math.pi))
    neither = 1 - keep + both

    def one(x: float) -> float:
        other = 1 - keep + keep * float(ndtr(-rho * x / spread))
        return keep * math.exp(-x * x / 2) / math.sqrt(2 * math.pi) * float(xlogy(other, other / zero))

    density = both * gaussian_information(rho) + keep**2 * rho * spread / (2 * math.pi)
    return neither * math.log(neither / zero**2) + 2 * quad(one, 0, 12, epsabs=1e-12)[0] + density
