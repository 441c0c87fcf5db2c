"""``normlens export``: a run as CSV, JSON lines, Parquet or netCDF."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from normlens.cli.errors import OK, UsageError
from normlens.cli.runs import find_runs

__all__ = ["add_parser", "execute"]


def add_parser(commands: Any) -> None:
    """Add this command to the parser."""
    parser = commands.add_parser("export", help="write a run as .csv, .jsonl, .parquet or .nc (netCDF)")
    parser.add_argument("run", metavar="RUN", help="a run's file")
    parser.add_argument("--out", type=Path, required=True, help="the file; its suffix decides the format")
    parser.add_argument("--recover", action="store_true", help="read what is whole of a damaged file")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Write the file and print its path."""
    from normlens.run import export

    formats = {
        ".csv": export.to_csv,
        ".jsonl": export.to_jsonl,
        ".parquet": export.to_parquet,
        ".nc": export.to_netcdf,
    }
    write = formats.get(options.out.suffix)
    if write is None:
        raise UsageError(f"--out must end in one of {', '.join(formats)}; got {options.out}")
    runs = find_runs([options.run], recover=options.recover)
    if len(runs) > 1:
        raise UsageError(f"export takes one run; {options.run} holds {len(runs)}: name one of their files")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(next(iter(runs.values())), options.out)
    print(options.out)
    return OK
