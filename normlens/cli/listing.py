"""``normlens list``: the names of layers, probes, models and data sets, or the runs of a folder."""

from __future__ import annotations

import argparse
import json
from typing import Any

from normlens.catalog import summaries
from normlens.cli.errors import OK
from normlens.cli.runs import find_runs

__all__ = ["add_parser", "execute"]

_PACKAGES = {
    "layers": "nn",
    "weights": "nn.parametrize",
    "optimizers": "optim",
    "probes": "probes",
    "models": "models",
    "data": "data",
    "figures": "plot",
}


def add_parser(commands: Any) -> None:
    """Add this command to the parser."""
    parser = commands.add_parser("list", help="list layers, probes, models, data sets, figures or runs")
    parser.add_argument("kind", choices=[*_PACKAGES, "runs"])
    parser.add_argument("folder", nargs="?", default="runs", help="where to look for runs (default: runs)")
    parser.add_argument("--json", action="store_true", help="print data alone, as JSON")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Print the list."""
    if options.kind == "runs":
        entries = {label: str(run.path) for label, run in find_runs([options.folder]).items()}
    else:
        entries = summaries(f"normlens.{_PACKAGES[options.kind]}")
    if options.json:
        print(json.dumps(entries, indent=2))
        return OK
    width = max(map(len, entries), default=0)
    for name, summary in entries.items():
        print(f"{name:{width}}  {summary}")
    return OK
