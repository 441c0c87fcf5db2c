"""``normlens report``: write the page that shows one run or several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from normlens.cli.errors import OK
from normlens.cli.runs import find_runs

__all__ = ["add_parser", "execute"]


def add_parser(commands: Any) -> None:
    """Add this command to the parser."""
    parser = commands.add_parser("report", help="write one self-contained HTML page about one run or several")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's file, or a folder of runs")
    parser.add_argument("--out", type=Path, help="the page (default: report.html beside the first run)")
    parser.add_argument("--recover", action="store_true", help="read what is whole of a damaged file")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from normlens.report.html import write_report

    runs = find_runs(options.runs, recover=options.recover)
    out = options.out or next(iter(runs.values())).path.parent / "report.html"
    print(write_report(runs, out))
    return OK
