"""``normlens show``: the verdict, the findings and the table of one run or several, in the terminal."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from normlens.cli.errors import OK
from normlens.cli.runs import find_runs

if TYPE_CHECKING:
    from normlens.run.store import Run

__all__ = ["add_parser", "execute"]


def add_parser(commands: Any) -> None:
    """Add this command to the parser."""
    parser = commands.add_parser("show", help="print what a run holds: verdict, findings, table, what did not run")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's file, or a folder of runs")
    parser.add_argument("--json", action="store_true", help="print data alone, as JSON")
    parser.add_argument("--recover", action="store_true", help="read what is whole of a damaged file")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Print the runs that the options name."""
    runs = find_runs(options.runs, recover=options.recover)
    if options.json:
        print(json.dumps({label: _facts(run) for label, run in runs.items()}, indent=2, default=str))
        return OK
    from normlens.cli.tables import print_verdicts

    print_verdicts(runs)
    for label, run in runs.items():
        print(f"\n{label}: {run.path}")
        for probe in run.probes:
            steps = run.steps(probe)
            print(f"  {probe:20} {len(steps)} measurements, steps {steps[0]} to {steps[-1]}")
        for fault in run.damage:
            print(f"  damaged: {fault}")
    return OK


def _facts(run: Run) -> dict[str, Any]:
    from normlens.report.diagnose import diagnose

    return {
        "path": str(run.path),
        "header": run.header,
        "probes": {probe: run.steps(probe) for probe in run.probes},
        "not_ok": [vars(m) for m in run.measurements if m.status != "ok"],
        "findings": [vars(finding) for finding in diagnose(run)],
        "damage": list(run.damage),
    }
