"""What the tests of the store share: measurements of every kind, and all that a file says, as plain Python."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from normlens.run.reading import Measurement, Reading
from normlens.run.store import Run
from normlens.run.writer import RunWriter


def _double(number: float) -> bytes:
    return struct.pack("<d", number)


def _told(measurement: Measurement) -> tuple[object, ...]:
    m = measurement
    facts = (m.step, m.probe, m.status, m.message, m.mode, _double(m.seconds), _double(m.elapsed))
    readings = tuple(
        (r.name, r.layer, r.units, r.dims, r.array.dtype.str, r.array.shape, r.array.tobytes(), _double(r.error), r.n)
        for r in m.readings
    )
    return (*facts, readings)


@pytest.fixture(scope="session")
def told() -> Callable[[Measurement], tuple[object, ...]]:
    """A measurement as a tuple of plain values, numbers as their bits: equal means equal to the last bit."""
    return _told


@pytest.fixture(scope="session")
def contents() -> Callable[[Run], tuple[object, list[tuple[object, ...]]]]:
    """``contents(run)``: the headers of its sessions and all its visible measurements, to the last bit."""
    return lambda run: (run.sessions, [_told(m) for m in run.with_readings()])


@pytest.fixture
def every_kind() -> list[Measurement]:
    """Measurements of all statuses, whose readings have all kinds of numbers and the awkward values of each."""
    rng = np.random.default_rng(0)
    awkward = np.array([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1])
    arrays: list[Reading] = [
        Reading("awkward", awkward, layer="a", dims=("unit",), error=math.inf),
        Reading("empty", np.ones((0, 3)), dims=("sample", "unit"), units="nats"),
        Reading("big_endian", np.arange(3, dtype=">i4"), dims=("unit",), n=2**63 - 1),
        Reading("transposed", rng.standard_normal((3, 2)).T, dims=("row", "column"), error=-0.0),
    ]
    for kind in ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"):
        arrays.append(Reading(kind, (50 * rng.standard_normal((2, 2))).astype(kind), dims=("row", "column")))
    scalars = [Reading(f"scalar{i}", x) for i, x in enumerate((1, -2.5, True, 1e300j, math.nan, 2**63, 0.1))]
    return [
        Measurement(0, "shapes", "ok", "", "eval", 0.25, 1e-3, tuple(arrays)),
        Measurement(-1, "scalars", "ok", "", "train", math.inf, math.nan, tuple(scalars)),
        Measurement(2**62, "broken", "failed", "ValueError: café ☕", "mixed", -0.0, -5.0),
    ]


@pytest.fixture
def small_file(tmp_path: Path) -> tuple[Path, list[Measurement]]:
    """A closed run of two sessions, the second of which measured steps 2 and 3 again, and what is visible of it."""
    path = tmp_path / "small.sqlite"
    made = {
        session: [_small(step, session) for step in steps] for session, steps in enumerate(((0, 1, 2, 3), (2, 3, 4)))
    }
    with RunWriter(path, {"seed": 1, "name": "first"}) as writer:
        for measurement in made[0]:
            writer.write([measurement])
    with RunWriter(path, {"seed": 2, "name": "second"}, resume=True, first_step=2) as writer:
        for measurement in made[1]:
            writer.write([measurement])
    return path, made[0][:2] + made[1]


def _small(step: int, session: int) -> Measurement:
    values = np.arange(4.0) / 3 + step + 10 * session
    readings = (
        Reading("offset", values, layer="block1.relu", dims=("channel",), error=0.01, n=64),
        Reading("loss", math.exp(-step) + session, units="nats", n=64),
    )
    return Measurement(step, "elimination", "ok", "", "eval", 0.5, 1.5 * step, readings)
