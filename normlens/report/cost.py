"""Overhead: what the lens took on top of the training, from its closing record or, without one, from the records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from normlens.run.store import Run

__all__ = ["Overhead", "overhead"]


@dataclass(frozen=True)
class Overhead:
    """The lens's time beside the training's.

    Attributes:
        bare: seconds of training without the lens.
        lens: seconds that the lens took.
        budget: the fraction of ``bare`` that it was allowed; nan for no limit.
        closed: whether the lens itself wrote these numbers at the end of the run.
    """

    bare: float
    lens: float
    budget: float = math.nan
    closed: bool = True

    @property
    def fraction(self) -> float:
        """``lens / bare``; nan before any training."""
        return self.lens / self.bare if self.bare > 0 else math.nan

    def __str__(self) -> str:
        share = "–" if math.isnan(self.fraction) else f"{100 * self.fraction:.1f} %"
        budget = "no budget" if math.isnan(self.budget) else f"budget {100 * self.budget:g} %"
        killed = "" if self.closed else "; the run was not closed, so this is the sum of its records"
        return (
            f"the lens took {self.lens:.3g} s on top of {self.bare:.3g} s of bare training: {share} ({budget}{killed})"
        )


def overhead(run: Run) -> Overhead:
    """Return what the lens took in a run, all sessions together.

    Args:
        run: an opened run; of a session that was killed, which has no closing record, the measurements are added up.
    """
    given = run.header.get("budget")
    budget = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else math.nan
    starts = [int(header["first_step"]) for header in run.sessions]
    closing = {_session(starts, step): numbers for step, numbers in _closings(run)}
    bare = {session: numbers["bare_seconds"] for session, numbers in closing.items()}
    spent = {session: numbers["lens_seconds"] for session, numbers in closing.items()}
    for measurement in run.measurements:
        session = _session(starts, measurement.step)
        if session not in closing:
            bare[session] = max(bare.get(session, 0.0), measurement.elapsed)
            spent[session] = spent.get(session, 0.0) + measurement.seconds
    return Overhead(math.fsum(bare.values()), math.fsum(spent.values()), budget, closed=len(starts) - 1 in closing)


def _closings(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """The closing records, whatever their status: step and numbers by name."""
    for measurement in run.with_readings("lens"):
        numbers = {r.name: float(r.array) for r in measurement.readings if not r.array.ndim}
        if {"bare_seconds", "lens_seconds"} <= numbers.keys():
            yield measurement.step, numbers


def _session(starts: list[int], step: int) -> int:
    """The session that a visible step belongs to: the last that began at or before it."""
    return max((i for i, start in enumerate(starts) if start <= step), default=0)
