"""The budget keeps its promise over a training, and no probe lives at another's expense."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from normlens.run.budget import Budget

COSTS = {"cheap": 0.005, "middling": 0.080, "dear": 0.900}


@dataclass
class Training:
    """A simulated run: steps of 20 ms, every one of them due."""

    budget: Budget
    prior: float = 0.02
    steps: int = 10_000
    step_seconds: float = 0.02

    def run(self, cost_at) -> dict[str, list[int]]:
        """Return the steps at which each probe was measured."""
        measured: dict[str, list[int]] = {name: [] for name in COSTS}
        for step in range(1, self.steps + 1):
            elapsed = step * self.step_seconds
            for name in COSTS:
                if self.budget.affords(name, elapsed, self.prior):
                    self.budget.charge(name, cost_at(name, step))
                    measured[name].append(step)
        return measured

    def seconds(self, measured, cost_at) -> dict[str, float]:
        return {name: sum(cost_at(name, step) for step in steps) for name, steps in measured.items()}


def steady(name: str, step: int) -> float:
    return COSTS[name]


def growing(name: str, step: int) -> float:
    return COSTS[name] * (1 + step / 10_000)


@pytest.mark.parametrize("prior", [0.0, 0.02, 2.0])
@pytest.mark.parametrize("cost_at", [steady, growing])
def test_probes_of_very_different_cost_spend_the_budget_together(cost_at, prior):
    training = Training(Budget(0.10, COSTS), prior)
    spent = training.seconds(training.run(cost_at), cost_at)
    assert 0.05 < sum(spent.values()) / 200 < 0.12
    for name, seconds in spent.items():  # an even share each, give or take one measurement
        assert abs(seconds - 200 * 0.10 / 3) <= 2 * COSTS[name] + 0.1 / 3 * prior, name


def test_the_costly_probe_is_measured_throughout_the_run():
    steps = Training(Budget(0.10, COSTS)).run(steady)["dear"]
    # Its share is 1/30: it pays 0.9 s every 27 s, which is 1350 steps; the first, a surprise, has to be paid as well.
    expected = [30, *range(2700, 10_000, 1350)]
    assert len(steps) == len(expected)
    assert all(abs(step - due) <= 2 for step, due in zip(steps, expected, strict=True))


def test_a_probe_overdraws_by_no_more_than_its_first_surprise():
    budget = Budget(0.10, ["dear"])
    assert budget.affords("dear", 1.0, prior_seconds=0.05)
    budget.charge("dear", 0.9)
    assert budget.credit("dear", 1.0) == pytest.approx(-0.8, rel=1e-12)
    assert not budget.affords("dear", 17.9, prior_seconds=0.05)  # 1.79 - 0.9 = 0.89 < 0.9
    assert budget.affords("dear", 18.1, prior_seconds=0.05)


def test_what_one_probe_spends_is_not_taken_from_another():
    budget = Budget(0.2, ["a", "b"])
    before = budget.credit("b", 10.0)
    budget.charge("a", 100.0)
    assert budget.credit("b", 10.0) == before == pytest.approx(1.0, rel=1e-12)


def test_the_prior_counts_until_the_first_measurement_and_the_last_one_afterwards():
    budget = Budget(0.1, ["a"])
    assert budget.expected("a", 3.0) == 3.0
    budget.charge("a", 5.0)
    budget.charge("a", 2.0)
    assert budget.expected("a", 3.0) == 2.0


def test_without_a_fraction_everything_is_affordable():
    budget = Budget(None, ["a"])
    budget.charge("a", 1e9)
    assert budget.affords("a", 0.0, 1e9)
    assert budget.credit("a", 0.0) == math.inf


@pytest.mark.parametrize("fraction", [0.0, -0.1, math.nan])
def test_a_fraction_that_is_not_positive_is_refused(fraction):
    with pytest.raises(ValueError, match=f"positive fraction of training time, e.g. 0.10, or None .*; got {fraction}"):
        Budget(fraction, ["a"])


def test_a_probe_is_asked_once_for_its_prior_and_what_it_lacks_is_kept():
    budget, asked = Budget(0.1, ["dear", "cheap"]), []

    def cost() -> float:
        asked.append(1)
        return 30.0

    assert not budget.allows("dear", 10.0, 0.1, cost)  # 30 gradients of 0.1 s against half of a tenth of 10 s
    assert not budget.allows("dear", 20.0, 0.1, cost)
    assert budget.allows("cheap", 20.0, 0.1, lambda: 1.0)
    assert asked == [1]
    assert budget.starved() == {"dear": "one measurement is expected to cost 3 s, its share of the budget came to 1 s"}
    assert budget.allows("dear", 60.0, 0.1, cost)
    budget.charge("dear", 3.0)
    assert budget.starved() == {}


def test_without_a_limit_no_probe_is_asked_for_its_prior():
    assert Budget(None, ["a"]).allows("a", 0.0, 1.0, lambda: pytest.fail("asked"))
