"""When to measure: a schedule is a function from the number of optimizer steps taken to yes or no.

The classes have lower-case names because they are used as functions, and their repr is how they were called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["at", "either", "every", "geometric"]


class _Schedule:
    """Schedules can be joined: ``every(100) | at(1, 2, 3)``."""

    def __call__(self, step: int) -> bool:
        """Say whether to measure after ``step`` optimizer steps."""
        raise NotImplementedError

    def __or__(self, other: _Schedule) -> either:
        return either(self, other)


@dataclass(frozen=True)
class every(_Schedule):
    """Measure at steps 0, n, 2n and so on.

    Raises:
        ValueError: n is smaller than one.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"every(n) needs n >= 1 optimizer steps between measurements; got {self.n}")

    def __call__(self, step: int) -> bool:
        """Say whether to measure after ``step`` optimizer steps."""
        return step % self.n == 0


@dataclass(frozen=True, init=False, repr=False)
class at(_Schedule):
    """Measure at the given steps.

    Raises:
        ValueError: a step is negative.
    """

    steps: frozenset[int]

    def __init__(self, *steps: int) -> None:
        if any(step < 0 for step in steps):
            raise ValueError(f"at(...) needs steps >= 0; got {steps}")
        object.__setattr__(self, "steps", frozenset(steps))

    def __call__(self, step: int) -> bool:
        """Say whether to measure after ``step`` optimizer steps."""
        return step in self.steps

    def __repr__(self) -> str:
        return f"at({', '.join(map(str, sorted(self.steps)))})"


@dataclass(frozen=True)
class geometric(_Schedule):
    """Measure at step 0 and at the rounded steps of ``start * ratio**k``, k = 0, 1, 2 and so on.

    Raises:
        ValueError: ``start`` is smaller than one, or ``ratio`` not larger than one.
    """

    ratio: float = 2.0
    start: int = 1

    def __post_init__(self) -> None:
        if self.start < 1 or self.ratio <= 1:
            raise ValueError(f"geometric needs start >= 1 and ratio > 1; got start={self.start}, ratio={self.ratio}")

    def __call__(self, step: int) -> bool:
        """Say whether to measure after ``step`` optimizer steps."""
        if step < self.start:
            return step == 0
        k = round(math.log(step / self.start) / math.log(self.ratio))
        return any(round(self.start * self.ratio**j) == step for j in (k - 1, k, k + 1))


@dataclass(frozen=True, init=False, repr=False)
class either(_Schedule):
    """Measure whenever one of the schedules says so."""

    schedules: tuple[_Schedule, ...]

    def __init__(self, *schedules: _Schedule) -> None:
        object.__setattr__(self, "schedules", schedules)

    def __call__(self, step: int) -> bool:
        """Say whether to measure after ``step`` optimizer steps."""
        return any(schedule(step) for schedule in self.schedules)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.schedules))
