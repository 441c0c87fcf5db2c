"""summary: the small table that compares runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from normlens.report.cost import overhead
from normlens.report.diagnose import diagnose
from normlens.report.readings import latest, rows, scalar
from normlens.report.verdict import verdict
from normlens.run.store import Run

__all__ = ["summary"]


def summary(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return one row for each run; None is for what a run lacks, and columns that no run has are left out.

    Columns: name, verdict, norm, optimizer, seed, test accuracy (a fraction), final loss (on the probe batch),
    λ_max (largest Hessian eigenvalue, last measurement), κ* (condition number, None where only bounded), dead
    channels (all layers, last measurement), time (s, training without the lens), overhead (%, of that time), of
    budget (%, the overhead in percent of what was allowed).

    Args:
        runs: runs by name.
    """
    table = [_row(name, run) for name, run in runs.items()]
    kept = [column for column in table[0] if any(row[column] is not None for row in table)] if table else []
    frame = pd.DataFrame(table, columns=kept, dtype=object)
    whole = [column for column in kept if all(row[column] is not None for row in table)]
    return frame.assign(**{column: frame[column].infer_objects() for column in whole})  # else None would become NaN


def _row(name: str, run: Run) -> dict[str, Any]:
    header = run.header
    config = header.get("config")
    config = config if isinstance(config, dict) else {}
    spent = overhead(run)
    return {
        "name": name,
        "verdict": verdict(diagnose(run)),
        "norm": _word(config.get("norm")),
        "optimizer": _word(config.get("optimizer")),
        "seed": _word(header.get("seed")),
        "test accuracy": _last(run, "user", "test_accuracy"),
        "final loss": _last(run, "training_curve", "loss"),
        "λ_max": _last(run, "hessian_spectrum", "lambda_max"),
        "κ*": _condition(run),
        "dead channels": _dead(run),
        "time (s)": spent.bare if spent.bare > 0 else None,
        "overhead (%)": 100 * spent.fraction if spent.bare > 0 else None,
        "of budget (%)": 100 * spent.fraction / spent.budget if spent.bare > 0 and spent.budget > 0 else None,
    }


def _word(value: object) -> str | None:
    """A header may hold anything; what is not a word or a number has no place in a small table."""
    return str(value) if isinstance(value, str | int | float) else None


def _last(run: Run, probe: str, name: str) -> float | None:
    """The last value; a NaN is a result, and not the same as an absent one."""
    return None if rows(run, probe, name).empty else scalar(run, probe, name)


def _dead(run: Run) -> float | None:
    counts = latest(rows(run, "elimination", "dead"))
    return float(counts["value"].sum()) if len(counts) else None


def _condition(run: Run) -> float | None:
    """The last condition number; an older one does not stand in for one of which only a bound is known."""
    found = latest(rows(run, "condition_number", "kappa", "kappa_lower"))
    exact = found.loc[found["name"] == "kappa", "value"]
    return float(exact.iloc[-1]) if len(exact) else None
