"""Clock: how long the training took by itself, and how long we looked at it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from normlens.run.reading import Reading

__all__ = ["Clock", "synchronized_time"]


class Clock:
    """Divides the time since :meth:`start` into the training's own and the lens's."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self.lens_seconds = 0.0

    @property
    def running(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._begun is not None

    @property
    def bare_seconds(self) -> float:
        """Seconds since the start, without those spent within :meth:`measuring`."""
        return 0.0 if self._begun is None else time.perf_counter() - self._begun - self.lens_seconds

    @property
    def overhead(self) -> float:
        """Seconds of measuring for each second of bare training; nan before the first one."""
        bare = self.bare_seconds
        return self.lens_seconds / bare if bare > 0 else math.nan

    def readings(self) -> tuple[Reading, ...]:
        """Return the two times and their ratio, for the record that closes a run."""
        return (
            Reading("bare_seconds", self.bare_seconds, units="s"),
            Reading("lens_seconds", self.lens_seconds, units="s"),
            Reading("overhead", self.overhead),
        )

    def start(self) -> None:
        """Let the time run."""
        self._begun = time.perf_counter()

    @contextmanager
    def measuring(self, model: torch.nn.Module) -> Iterator[None]:
        """Book the time of the block as the lens's."""
        begun = synchronized_time(model)
        try:
            yield
        finally:
            self.lens_seconds += synchronized_time(model) - begun


def synchronized_time(model: torch.nn.Module) -> float:
    """Return the time in seconds, after all that the model's accelerator still had to do is done."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
