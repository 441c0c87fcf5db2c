"""provenance: how a run was measured: what its headers say, what did not run and why, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from normlens.report.cost import overhead
from normlens.report.readings import rows
from normlens.run.store import Run

__all__ = ["Provenance", "provenance"]

DEEPEST = 5  # levels of a nested configuration; a header may have been made by hand, or by a joker


@dataclass(frozen=True)
class Provenance:
    """What stands under "How this was measured" for one run.

    Attributes:
        file: the name of the run's file.
        facts: pairs of name and value from the header of the last session, nested names joined by dots.
        sessions: one line for each session.
        measured: one line for each probe: how often it ran, at which steps, at what cost.
        absent: one line for each probe and reason for which something was not measured.
        overhead: the lens's time beside the training's, in a sentence.
        damage: what the store had to leave out.
    """

    file: str
    facts: tuple[tuple[str, str], ...]
    sessions: tuple[str, ...]
    measured: tuple[str, ...]
    absent: tuple[str, ...]
    overhead: str
    damage: tuple[str, ...]


def provenance(run: Run) -> Provenance:
    """Return how a run was measured, as far as its file knows.

    Args:
        run: an opened run; every key of its header may be missing.
    """
    return Provenance(
        file=run.path.name,
        facts=tuple(_facts(run.header)),
        sessions=tuple(_sessions(run)),
        measured=tuple(_measured(run)),
        absent=tuple(_absent(run)),
        overhead=str(overhead(run)),
        damage=run.damage,
    )


def _facts(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and depth < DEEPEST:
        for key, inner in value.items():
            yield from _facts(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif name == "layers" and isinstance(value, list):
        yield name, f"{len(value)}, in network order"
    elif name == "budget":
        yield name, "no limit" if value is None else f"{value} of the training's time"
    elif value not in ({}, []):
        yield name, str(value)


def _sessions(run: Run) -> Iterator[str]:
    for number, header in enumerate(run.sessions, start=1):
        started = f", started {header['started']}" if header.get("started") else ""
        yield f"session {number}: from step {header['first_step']}{started}"


def _measured(run: Run) -> Iterator[str]:
    ok = [m for m in run.measurements if m.status == "ok"]
    for probe in dict.fromkeys(m.probe for m in ok):
        told = set(rows(run, probe)["step"])  # a probe with a schedule of its own has nothing to say at the others
        mine = [m for m in ok if m.probe == probe and (m.step in told or not told)]
        modes = ", ".join(sorted({m.mode for m in mine if m.mode}))
        mode = f", mode {modes}" if modes else ""
        steps = f"steps {min(m.step for m in mine)} to {max(m.step for m in mine)}"
        yield f"{probe}: {len(mine)} measurements, {steps}{mode}, {sum(m.seconds for m in mine):.3g} s in all"


def _absent(run: Run) -> Iterator[str]:
    reasons: dict[tuple[str, str, str], list[int]] = {}
    for m in run.measurements:
        if m.status in ("failed", "starved"):
            reasons.setdefault((m.probe, m.status, m.message), []).append(m.step)
    for (probe, status, message), steps in reasons.items():
        shown = ", ".join(map(str, steps[:8])) + (" …" if len(steps) > 8 else "")
        yield f"{probe} {status} {len(steps)} times, at steps {shown}: {message or 'no reason was recorded'}"
