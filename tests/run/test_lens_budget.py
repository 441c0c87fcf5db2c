"""The time budget as a training sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch

from normlens.probes import TrainingCurve
from normlens.run.clock import Clock
from normlens.run.store import open_run
from support.networks import batch, mlp
from support.probes import Index, Sleeps, lens, loss_function


def value(run, probe: str, name: str) -> dict[int, float]:
    frame = run.frame(probe)
    return frame[frame["name"] == name].set_index("step")["value"].to_dict()


def test_a_probe_that_could_never_afford_to_run_is_reported_with_what_it_would_have_cost(tmp_path):
    with lens(tmp_path, [Sleeps(0.001, prior=1e9), Index()], every=1, budget=0.5) as watched:
        for _ in range(5):
            time.sleep(0.002)
            watched.step()
    starved = [m for m in open_run(tmp_path / "run").measurements if m.status == "starved"]
    assert [m.probe for m in starved] == ["sleeps"]
    assert "expected to cost" in starved[0].message
    assert "its share of the budget came to" in starved[0].message


def test_a_probe_that_cannot_say_its_cost_is_measured_and_warned_of_once(tmp_path):
    @dataclass(frozen=True)
    class Speechless(Index):
        def cost(self, step):
            raise ValueError("no idea")

    watched = lens(tmp_path, [Speechless()], every=1, budget=0.5)
    with pytest.warns(RuntimeWarning, match="cannot say its cost: ValueError: no idea"):
        for _ in range(3):
            watched.step()
    watched.close()
    assert watched.run.steps("speechless")


def test_under_a_budget_a_measurement_after_waiting_for_credit_still_knows_the_update(tmp_path):
    class TenMillisecondsAStep(Clock):
        bare_seconds = property(lambda self: 0.01 * watched.index)

    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = lens(tmp_path, [TrainingCurve()], model, every=1, budget=0.2, optimizer=optimizer)
    watched._clock = TenMillisecondsAStep()
    with watched:
        for _ in range(300):
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            optimizer.step()
            watched.step()
    measured, updates = (value(watched.run, "training_curve", name) for name in ("loss", "update_norm"))
    assert 1 < len(measured) < 300
    assert list(updates) == list(measured)


def test_waiting_for_credit_costs_next_to_nothing(tmp_path):
    """A probe that is due at every step and cannot pay must not build anything."""
    model = mlp()
    with lens(tmp_path, [Sleeps(0.0, prior=1e9)], model, every=1, budget=0.1) as watched:
        watched.step()
        built = []
        watched._risk = lambda data: built.append(1)
        for _ in range(50):
            watched.step()
    assert built == []
