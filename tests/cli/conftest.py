from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normlens.run.reading import Measurement, Reading
from normlens.run.writer import RunWriter


def write_run(path: Path, *, name: str, started: str = "2026-01-01T00:00:00+00:00") -> Path:
    """Write a small run without torch."""
    with RunWriter(path, {"name": name, "started": started, "config": {"norm": name}}) as writer:
        for step in (0, 10):
            readings = (
                Reading("loss", 2.0 / (step + 1)),
                Reading("accuracy", 0.5 + step / 100, error=0.02, n=256),
                Reading("gradient_norm", 1.0),
            )
            channels = np.array([0.5, -0.5])
            offsets = (Reading("offset", channels, layer="relu", dims=("channel",), n=512),)
            writer.write(
                [
                    Measurement(step, "training_curve", mode="train", seconds=0.01, readings=readings),
                    Measurement(step, "elimination", mode="train", seconds=0.01, readings=offsets),
                ]
            )
    return path


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    """A folder of two runs; the second file in the alphabet was begun first."""
    write_run(tmp_path / "b.sqlite", name="begun first")
    write_run(tmp_path / "a.sqlite", name="begun second", started="2026-01-02T00:00:00+00:00")
    return tmp_path
