"""Schedules against plain sets of steps."""

from __future__ import annotations

import pytest

from normlens.run.schedule import at, either, every, geometric

STEPS = range(10_001)


def chosen(schedule) -> set[int]:
    return {step for step in STEPS if schedule(step)}


def powers(ratio: float, start: int) -> set[int]:
    found, k = {0}, 0
    while round(start * ratio**k) <= STEPS[-1]:
        found.add(round(start * ratio**k))
        k += 1
    return found


@pytest.mark.parametrize("n", [1, 2, 7, 100, 20_000])
def test_every_n_is_the_multiples_of_n(n):
    assert chosen(every(n)) == set(range(0, 10_001, n))


@pytest.mark.parametrize("steps", [(), (0,), (3, 1, 3), (10_000, 5)])
def test_at_is_the_given_steps(steps):
    assert chosen(at(*steps)) == set(steps)


@pytest.mark.parametrize("ratio", [2.0, 3.0, 1.5, 1.5825, 1.1, 1.01, 10.0, 1.0005, 7.3])
@pytest.mark.parametrize("start", [1, 2, 3, 10, 500])
def test_geometric_is_zero_and_the_rounded_powers(ratio, start):
    assert chosen(geometric(ratio, start)) == powers(ratio, start)


def test_the_default_geometric_schedule_doubles():
    assert sorted(chosen(geometric())) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]


def test_a_union_measures_when_any_of_its_parts_does():
    parts = (every(1000), at(1, 2, 3), geometric(3.0, 5))
    union = parts[0] | parts[1] | parts[2]
    expected = set().union(*map(chosen, parts))
    assert chosen(union) == expected
    assert chosen(either(*parts)) == expected
    assert chosen(either()) == set()


def test_a_schedule_can_be_joined_with_a_plain_function():
    assert chosen(at(4) | (lambda step: step == 9)) == {4, 9}


@pytest.mark.parametrize(
    "schedule", [every(5), at(3, 1), at(), geometric(1.5, 10), every(100) | at(2, 1), every(2) | at(1) | geometric()]
)
def test_a_schedule_prints_as_the_call_that_makes_it(schedule):
    names = {"every": every, "at": at, "geometric": geometric}
    assert eval(repr(schedule), names) == schedule


def test_schedules_read_as_they_were_written():
    assert repr(every(100) | at(9, 3)) == "every(n=100) | at(3, 9)"
    assert repr(geometric()) == "geometric(ratio=2.0, start=1)"


def test_schedules_are_values():
    assert at(1, 2) == at(2, 1)
    assert hash(every(3)) == hash(every(3))
    assert every(3) != every(4)


@pytest.mark.parametrize("n", [0, -1])
def test_every_refuses_less_than_one_step(n):
    with pytest.raises(ValueError, match=f"needs n >= 1 optimizer steps between measurements; got {n}"):
        every(n)


def test_at_refuses_steps_before_the_first():
    with pytest.raises(ValueError, match=r"needs steps >= 0; got \(3, -1\)"):
        at(3, -1)


@pytest.mark.parametrize(("ratio", "start"), [(1.0, 1), (0.5, 1), (2.0, 0), (2.0, -3)])
def test_geometric_refuses_what_does_not_grow(ratio, start):
    with pytest.raises(ValueError, match=f"needs start >= 1 and ratio > 1; got start={start}, ratio={ratio}"):
        geometric(ratio, start)
