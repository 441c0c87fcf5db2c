"""One number for many channels."""

from __future__ import annotations

import pytest
import torch

from normlens.information.divergence.common import mean_estimate
from normlens.information.histogram import AsinhGrid, Histogram


def test_value_and_bound_are_averages_over_the_channels_and_the_cost_is_what_was_counted():
    grid = AsinhGrid(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    h1 = Histogram.of(torch.tensor([[1.0, 0.0], [2.0, torch.nan], [3.0, 4.0]], dtype=torch.float64), grid)
    h2 = Histogram.of(torch.ones(4, 2, dtype=torch.float64), grid)
    found = mean_estimate(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.1]), h1, h2)
    assert found.value == 2
    assert found.error == pytest.approx(0.3)
    assert found.cost == 3 + 2 + 8  # zeros are counted, what is not finite is not
