"""The correlation behind gates is the one of the moments, exactly, and keep times the old one only without means."""

from __future__ import annotations

import math

import pytest
import torch

from normlens.information.mutual_information import gated_correlation
from support.dependent_pairs import gated_table, random_table, seeded


def correlation(joint: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
    """Correlation, and mean over standard deviation of both, of a table with these values."""
    p, q = joint.sum(1), joint.sum(0)
    mean_x, mean_y = p @ x, q @ y
    std_x, std_y = (p @ (x - mean_x) ** 2).sqrt(), (q @ (y - mean_y) ** 2).sqrt()
    covariance = (x - mean_x) @ joint @ (y - mean_y)
    return tuple(float(v) for v in (covariance / (std_x * std_y), mean_x / std_x, mean_y / std_y))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("keep", [0.2, 0.8, 1.0])
def test_it_is_the_correlation_of_the_gated_table(seed, keep):
    joint = random_table(4, 5, seed)
    x, y = (torch.randn(m, generator=seeded(seed + m), dtype=torch.float64) + 1 for m in (4, 5))
    before = torch.tensor(correlation(joint, x, y), dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    after = correlation(gated_table(joint, keep), torch.cat([zero, x / keep]), torch.cat([zero, y / keep]))[0]
    assert gated_correlation(*before, keep_prob=keep).item() == pytest.approx(after, abs=1e-14)


def test_a_mean_takes_more_than_the_gates_do():
    c, one, half, zero = (torch.tensor(v, dtype=torch.float64) for v in (0.6, 1.0, 0.5, 0.0))
    assert gated_correlation(c, one, half, keep_prob=0.8).item() == pytest.approx(0.42762, abs=5e-6)
    assert gated_correlation(c, zero, zero, keep_prob=0.8).item() == pytest.approx(0.48, abs=1e-15)
    expected = 0.48 / math.sqrt(1.2 * 1.05)
    assert gated_correlation(c, one, half, keep_prob=0.8).item() == pytest.approx(expected, abs=1e-15)


def test_a_gate_that_never_opens_is_refused():
    with pytest.raises(ValueError, match=r"within \(0, 1\]; got 0.0; pass 1 minus the rate of nn.Dropout"):
        gated_correlation(torch.ones(1), torch.ones(1), torch.ones(1), keep_prob=0.0)
