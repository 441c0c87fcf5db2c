from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from normlens.optim.input_statistics import InputMoments, InputStatistics, covariances, gathered, means, variances

MEASURES = [means, variances, covariances]


def moments_of(rows: Tensor, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and covariance of rows (n, channels), by group."""
    parts = rows.chunk(groups, 1)
    mean = torch.stack([p.mean(0) for p in parts])
    covariance = torch.stack([torch.cov(p.T, correction=0).view(p.shape[1], -1) for p in parts])
    return mean, covariance.diagonal(dim1=1, dim2=2), covariance


def check(found: InputMoments, rows: Tensor, groups: int = 1) -> None:
    mean, variance, covariance = moments_of(rows, groups)
    torch.testing.assert_close(found.mean, mean, rtol=1e-13, atol=1e-13)
    if found.spread is not None:
        expected = variance if found.spread.dim() == 2 else covariance
        torch.testing.assert_close(found.spread, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_several_passes_are_pooled_as_if_they_were_one(measure: Callable, draw: Callable[..., Tensor]) -> None:
    layer, parts = nn.Linear(3, 2).double(), [draw(n, 3) + n for n in (4, 1, 7)]
    statistics = InputStatistics({"a": layer}, measure)
    for x in parts:
        layer(x).sum().backward()
    found = statistics.take()["a"]
    check(found, torch.cat(parts))
    assert found[2:] == (12, 12, 12)
    assert statistics.take() == {}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_layer_called_twice_before_the_backward_pass_has_the_inputs_of_both(
    measure: Callable, draw: Callable[..., Tensor]
) -> None:
    layer, parts = nn.Linear(3, 3).double(), [draw(4, 3), draw(5, 3) + 1]
    statistics = InputStatistics({"a": layer}, measure)
    (layer(parts[0]).sum() + layer(parts[1]).sum()).backward()
    check(statistics.take()["a"], torch.cat(parts))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolutions_input_is_pooled_over_samples_and_positions(
    rank: int, measure: Callable, draw: Callable[..., Tensor]
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer, x = kind(4, 6, 2, stride=2, groups=2).double(), draw(3, 4, *(6, 5, 4)[:rank]) + 1
    statistics = InputStatistics({"a": layer}, measure)
    layer(x).sum().backward()
    found = statistics.take()["a"]
    check(found, x.movedim(1, -1).flatten(0, -2), groups=2)
    positions = (6, 30, 120)[rank - 1]
    assert found[2:] == (3 * positions, 3 * (3, 6, 12)[rank - 1], 3)


def test_a_sequence_is_pooled_over_samples_and_time_and_a_single_sample_is_a_batch_of_one(
    draw: Callable[..., Tensor],
) -> None:
    linear, conv = nn.Linear(3, 2).double(), nn.Conv1d(3, 2, 2).double()
    statistics = InputStatistics({"linear": linear, "conv": conv}, variances)
    sequence, single = draw(4, 5, 3), draw(3, 6)
    linear(input=sequence).sum().backward()
    conv(single).sum().backward()
    found = statistics.take()
    check(found["linear"], sequence.flatten(0, 1))
    check(found["conv"], single.T)
    assert found["linear"][2:] == (20, 20, 20)
    assert found["conv"][2:] == (6, 5, 1)


def test_passes_in_eval_mode_or_without_gradients_or_of_nothing_do_not_count(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(3, 2).double(), draw(4, 3)
    statistics = InputStatistics({"a": layer}, variances)
    layer.eval()
    layer(draw(9, 3)).sum().backward()
    layer.train()
    with torch.no_grad():
        layer(draw(9, 3))
    layer(draw(0, 3)).sum().backward()
    layer(x).sum().backward()
    check(statistics.take()["a"], x)


def test_a_pass_whose_gradient_was_thrown_away_does_not_count(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(3, 2).double(), draw(4, 3)
    statistics = InputStatistics({"a": layer}, variances)
    for inputs in (draw(4, 3) + torch.inf, x):
        layer.zero_grad()
        layer(inputs).sum().backward()
    check(statistics.take()["a"], x)


def test_a_layer_without_a_gradient_is_left_out_and_begins_anew(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(3, 2).double(), draw(4, 3)
    statistics = InputStatistics({"a": layer}, variances)
    layer(draw(4, 3))
    assert statistics.take() == {}
    layer(x).sum().backward()
    check(statistics.take()["a"], x)


def test_layers_that_are_not_active_are_not_measured(draw: Callable[..., Tensor]) -> None:
    layers = {"a": nn.Linear(3, 3).double(), "b": nn.Linear(3, 3).double()}
    statistics = InputStatistics(layers, variances)
    statistics.active = {"b"}
    layers["b"](layers["a"](draw(4, 3))).sum().backward()
    assert set(statistics.take()) == {"b"}


@pytest.mark.parametrize("measure", MEASURES)
def test_half_precision_is_measured_in_float32(measure: Callable, draw: Callable[..., Tensor]) -> None:
    """A standard deviation of 300 is a variance beyond the range of float16."""
    x = (300 * draw(64, 3)).half()
    mean, spread = measure(x, 1)
    assert mean.dtype == torch.float32
    expected = moments_of(x.double())
    torch.testing.assert_close(mean.double(), expected[0], rtol=1e-5, atol=1e-3)
    if spread is not None:
        assert spread.dtype == torch.float32
        torch.testing.assert_close(spread.double(), expected[spread.dim() - 1], rtol=1e-5, atol=1.0)


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(draw: Callable[..., Tensor]) -> None:
    a, b = (draw(500, 2, dtype=torch.float32) + 1e4 for _ in range(2))
    found = gathered(*(InputMoments(*variances(x, 1), len(x), len(x), len(x)) for x in (a, b)))
    expected = torch.cat([a, b]).double().var(0, correction=0)
    # a float32 near 1e4 is good to 1e-3, the means are 0.1 apart: 2 * 0.1 * 1e-3 / 4; in one pass it were 10
    torch.testing.assert_close(found.spread[0].double(), expected, rtol=1e-5, atol=5e-5)


def test_a_copy_of_the_model_does_not_report_to_the_original(draw: Callable[..., Tensor]) -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()
    statistics = InputStatistics({"0": model[0]}, variances)
    copied = deepcopy(model)
    copied(draw(4, 3)).sum().backward()
    model(draw(4, 3)).sum().backward()
    assert statistics.take()["0"].values == 4


def test_removing_takes_the_hooks_off(count_hooks: Callable[..., int]) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    statistics = InputStatistics({"a": layer}, variances)
    assert count_hooks(layer, optimizer) == 2
    statistics.remove()
    assert count_hooks(layer, optimizer) == 0


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"statistics of inputs need one process.*got 2 processes; train in one"):
        InputStatistics({"a": nn.Linear(2, 2)}, variances)
