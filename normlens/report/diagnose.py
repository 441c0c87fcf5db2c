"""diagnose: what is wrong with a run, in words; every rule of ``report/rules`` is asked."""

from __future__ import annotations

from dataclasses import replace

from normlens import catalog
from normlens.report.finding import Findings
from normlens.run.store import Run

__all__ = ["diagnose", "rules"]

PACKAGE = "normlens.report.rules"


def diagnose(run: Run) -> Findings:
    """Return what the rules find in a run, worst first.

    A run in which no rule finds anything is one in which none of :func:`rules` applies: no more is claimed.

    Args:
        run: an opened run, finished or still being written.
    """
    asked = {name: catalog.load(PACKAGE, name)(run) for name in rules()}
    return Findings(sorted(replace(finding, rule=name) for name, found in asked.items() for finding in found))


def rules() -> dict[str, str]:
    """Return the rules that :func:`diagnose` asks: name and what it looks for."""
    return {name: line.partition(": ")[2] or line for name, line in catalog.summaries(PACKAGE).items()}
