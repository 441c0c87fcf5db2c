from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from normlens.data.batching import Batches, epoch_order


def numbered(length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets that tell which example they are."""
    numbers = torch.arange(length)
    return numbers.to(torch.float64)[:, None], numbers


def visited(batches: Batches) -> list[int]:
    """The examples of one epoch in the order in which they come."""
    return [int(number) for _, targets in batches for number in targets]


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_visits_every_example_once(shuffle: bool) -> None:
    batches = Batches(*numbered(23), batch_size=4, seed=0, shuffle=shuffle)
    for _ in range(3):
        assert sorted(visited(batches)) == list(range(23))


def test_inputs_stay_with_their_targets() -> None:
    for inputs, targets in Batches(*numbered(23), batch_size=4, seed=0):
        assert torch.equal(inputs[:, 0], targets.to(torch.float64))


def test_an_epoch_of_a_seed_is_the_same_in_every_loader() -> None:
    first, second = (Batches(*numbered(50), batch_size=size, seed=3) for size in (7, 50))
    assert [visited(first) for _ in range(3)] == [visited(second) for _ in range(3)]


def test_setting_the_epoch_resumes_a_run() -> None:
    whole, resumed = (Batches(*numbered(50), batch_size=8, seed=3) for _ in range(2))
    resumed.epoch = 2
    assert [visited(whole) for _ in range(4)][2:] == [visited(resumed) for _ in range(2)]


def test_no_two_epochs_and_seeds_share_an_order() -> None:
    pairs = itertools.product(range(6), range(6))
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch).tolist()) for seed, epoch in pairs}
    assert len(orders) == 36


def test_all_orders_are_equally_likely() -> None:
    draws = 3000
    orders = Counter(
        tuple(epoch_order(3, seed=seed, epoch=epoch).tolist()) for seed in range(draws // 10) for epoch in range(10)
    )
    assert len(orders) == 6
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_an_epoch_is_counted_when_it_is_started_not_when_its_first_batch_is_taken() -> None:
    batches = Batches(*numbered(50), batch_size=8, seed=0)
    first, second = iter(batches), iter(batches)
    assert batches.epoch == 2
    taken = [torch.cat([targets for _, targets in epoch]) for epoch in (second, first)]
    assert torch.equal(taken[1], epoch_order(50, seed=0, epoch=0))
    assert torch.equal(taken[0], epoch_order(50, seed=0, epoch=1))


def test_without_shuffle_every_epoch_keeps_the_order_of_the_tensors() -> None:
    batches = Batches(*numbered(10), batch_size=3, seed=0, shuffle=False)
    assert visited(batches) == visited(batches) == list(range(10))


@pytest.mark.parametrize(
    ("length", "batch_size", "drop_last", "sizes"),
    [
        (10, 3, False, [3, 3, 3, 1]),
        (10, 3, True, [3, 3, 3]),
        (9, 3, False, [3, 3, 3]),
        (9, 3, True, [3, 3, 3]),
        (2, 5, False, [2]),
        (5, 5, True, [5]),
        (3, 1, False, [1, 1, 1]),
    ],
)
def test_the_length_is_the_number_of_batches_and_only_the_last_may_be_smaller(
    length: int, batch_size: int, drop_last: bool, sizes: list[int]
) -> None:
    batches = Batches(*numbered(length), batch_size=batch_size, seed=0, drop_last=drop_last)
    assert [len(targets) for _, targets in batches] == sizes
    assert len(batches) == len(sizes)


def test_changing_a_batch_leaves_the_data_alone() -> None:
    inputs, targets = numbered(6)
    for shuffle in (True, False):
        for batch, _ in Batches(inputs, targets, batch_size=2, seed=0, shuffle=shuffle):
            batch.zero_()
    assert torch.equal(inputs[:, 0], targets.to(torch.float64))


def test_iterating_leaves_the_global_random_states_alone(global_random_states: Callable[[], str]) -> None:
    before = global_random_states()
    visited(Batches(*numbered(50), batch_size=8, seed=0))
    assert global_random_states() == before


def test_the_order_does_not_depend_on_the_global_seed() -> None:
    orders = []
    with torch.random.fork_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            orders.append(visited(Batches(*numbered(50), batch_size=8, seed=0)))
    assert orders[0] == orders[1]


def test_inputs_and_targets_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long, got 4 and 3: pass one target for each input"):
        Batches(torch.zeros(4, 2), torch.zeros(3), batch_size=2, seed=0)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_examples_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}: pass"):
        Batches(*numbered(4), batch_size=batch_size, seed=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must not be negative, got -1: pass"):
        Batches(*numbered(4), batch_size=2, seed=-1)


@pytest.mark.parametrize(("length", "drop_last"), [(0, False), (3, True)])
def test_a_loader_without_a_batch_is_refused(length: int, drop_last: bool) -> None:
    with pytest.raises(ValueError, match=f"at least one batch, got {length} examples .*: pass more examples"):
        Batches(*numbered(length), batch_size=4, seed=0, drop_last=drop_last)
