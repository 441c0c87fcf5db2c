"""Question: one section of the page, and what the sections share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from normlens.plot.style import number
from normlens.report.readings import rows
from normlens.report.svg import Draw
from normlens.run.reading import Measurement
from normlens.run.store import Run

__all__ = ["Question", "method", "sentence", "unanswered"]


@dataclass(frozen=True)
class Question:
    """A question that a reader has about runs, with its answer.

    Attributes:
        heading: the question.
        order: its place on the page.
        probe: whose readings answer it.
        answers: for each run one sentence computed from its data; empty where nothing was measured.
        figures: what shows it; empty where nothing was measured.
        table: the numbers of the figure.
        method: how it was measured, as pairs of name and words.
        absence: why there is no answer.
    """

    heading: str
    order: int
    probe: str
    answers: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[Draw, ...] = ()
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    method: Mapping[str, str] = field(default_factory=dict)
    absence: str = ""


def sentence(words: str) -> str:
    """Return words as a sentence: a capital first, a full stop last."""
    return f"{words[:1].upper()}{words[1:]}."


def method(runs: Mapping[str, Run], probe: str, *names: str, **words: str) -> dict[str, str]:
    """Return a method note: the given words, and from the records mode, sample size and cost.

    Args:
        runs: runs by name.
        probe: the probe.
        *names: the readings whose sample size counts.
        **words: what the records cannot know: estimator, error, reference.
    """
    sizes = {int(n) for run in runs.values() for n in rows(run, probe, *names)["n"] if n}
    measured = [m for run in runs.values() for m in _telling(run, probe)]
    span = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else "".join(map(str, sizes))
    seconds = sum(m.seconds for m in measured)
    each = f", {number(seconds / len(measured))} s each" if measured else ""
    found = {
        "mode": ", ".join(sorted({m.mode for m in measured if m.mode})) or "not recorded",
        "sample size": f"n = {span}" if span else "not recorded",
        "cost": f"{number(seconds)} s in {len(measured)} measurements{each}, all runs together",
    }
    return {**{name.replace("_", " "): text for name, text in words.items()}, **found}


def _telling(run: Run, probe: str) -> list[Measurement]:
    """Return the measurements at which the probe had something to say: one with its own schedule has not at all."""
    steps = set(rows(run, probe)["step"])
    return [m for m in run.measurements if m.probe == probe and m.status == "ok" and m.step in steps]


def unanswered(runs: Mapping[str, Run], probe: str) -> str:
    """Say that a probe has measured nothing, and why, as far as the runs know."""
    reasons = {m.message for run in runs.values() for m in run.measurements if m.probe == probe and m.status != "ok"}
    why = f" It was tried: {'; '.join(sorted(reasons))[:500]}." if reasons else ""
    return f"Not measured: no run holds what the probe {probe} reads for this.{why} Pass it to the lens in probes=."
