from __future__ import annotations

import math
import time

import pytest
from torch import nn

from normlens.run.clock import Clock


def test_the_time_is_divided_between_training_and_lens():
    clock, model = Clock(), nn.Linear(1, 1)
    assert not clock.running
    assert clock.bare_seconds == 0.0
    assert math.isnan(clock.overhead)
    begun = time.perf_counter()
    clock.start()
    time.sleep(0.02)
    with clock.measuring(model):
        time.sleep(0.05)
    bare = clock.bare_seconds
    total = time.perf_counter() - begun
    assert clock.running
    assert clock.lens_seconds >= 0.05
    assert bare >= 0.02
    assert bare + clock.lens_seconds == pytest.approx(total, abs=1e-3)


def test_time_of_a_block_that_raises_is_booked_too():
    clock = Clock()
    clock.start()
    with pytest.raises(ValueError, match="within"), clock.measuring(nn.Linear(1, 1)):
        fail()
    assert clock.lens_seconds >= 0.01


def fail() -> None:
    time.sleep(0.01)
    raise ValueError("within")
