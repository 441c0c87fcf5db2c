"""What happens to random numbers in the block stays in the block."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

from normlens.random_state import preserved_random_state


@pytest.fixture(autouse=True)
def _own_states():
    """These tests seed the global states; give them back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


def draws() -> tuple[float, ...]:
    """One number of every kind, the second normal of a pair included: it is kept outside the state vector."""
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        torch.rand(()).item(),
        torch.randn(()).item(),
    )


def start() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    draws()


@pytest.mark.parametrize("seed", [None, 0, 7, 2**63])
def test_the_user_draws_the_same_numbers_with_and_without_the_block(seed):
    start()
    expected = draws()
    start()
    with preserved_random_state(seed):
        draws()
        torch.manual_seed(99)
    assert draws() == expected


def test_the_states_come_back_when_the_block_raises():
    start()
    expected = draws()
    start()
    with pytest.raises(KeyboardInterrupt), preserved_random_state(3):
        draws()
        raise KeyboardInterrupt
    assert draws() == expected


def test_a_seed_makes_the_block_repeatable_and_is_torch_s_own():
    with preserved_random_state(5):
        first = torch.rand(3)
    torch.rand(1)
    with preserved_random_state(5):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_without_a_seed_the_block_goes_on_where_the_user_stands():
    start()
    expected = draws()
    start()
    with preserved_random_state():
        assert draws() == expected


def test_blocks_nest():
    with preserved_random_state(1):
        torch.rand(1)
        with preserved_random_state(2):
            torch.rand(1)
        inner = torch.rand(1)
    assert torch.equal(inner, torch.rand(2, generator=torch.Generator().manual_seed(1))[1:])


def test_another_bit_generator_of_numpy_is_preserved_without_a_warning():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(4))
    try:
        expected = np.random.Generator(np.random.PCG64(4)).bit_generator.random_raw(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with preserved_random_state():
                np.random.rand(3)  # noqa: NPY002
        assert np.random.get_bit_generator().random_raw(2).tolist() == expected.tolist()
    finally:
        np.random.set_bit_generator(before)
