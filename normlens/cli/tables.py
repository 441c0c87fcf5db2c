"""The verdict table in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from normlens.report.diagnose import diagnose
from normlens.report.summary import summary
from normlens.run.store import Run

__all__ = ["print_verdicts"]

_COLORS = {"sick": "31", "look": "33", "note": "36"}


def print_verdicts(runs: Mapping[str, Run]) -> None:
    """Print the table of the runs, then their findings, worst first."""
    print(summary(runs).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for label, run in runs.items():
        for finding in diagnose(run):
            where = " ".join(filter(None, [finding.layer, "" if finding.step is None else f"step {finding.step}"]))
            print(f"{_mark(finding.severity)} {label}{': ' + where if where else ''}: {finding.message}")


def _mark(severity: str) -> str:
    """Return the severity as a word, colored on a terminal only."""
    word = f"[{severity}]"
    return f"\x1b[{_COLORS.get(severity, '0')}m{word}\x1b[0m" if sys.stdout.isatty() else word
