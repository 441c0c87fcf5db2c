"""``normlens doctor``: is everything here that normlens needs, and does it work?"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sqlite3
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

from normlens.cli.errors import FAILURE, OK

__all__ = ["add_parser", "execute"]

_NEEDED = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "seaborn",
    "tqdm",
    "Jinja2",
    "lazy_loader",
)
_EXTRAS = ("pyarrow", "xarray", "h5netcdf", "h5py")


def add_parser(commands: Any) -> None:
    """Add this command to the parser."""
    parser = commands.add_parser("doctor", help="check the installation, the machine and the file system")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run every check and print a line for each; the exit code says whether all passed."""
    print(f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    print(f"sqlite {sqlite3.sqlite_version}")
    checks: list[tuple[str, Callable[[], str]]] = [(name, partial(metadata.version, name)) for name in _NEEDED]
    checks += [("store", _check_store), ("second derivatives", _check_second_derivatives), ("devices", _devices)]
    passed = [_report(name, check) for name, check in checks]
    for name in _EXTRAS:
        print(f"optional  {name}: {'installed' if _installed(name) else 'not installed (extra: export)'}")
    return OK if all(passed) else FAILURE


def _report(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"ok        {name}: {check()}")
    except Exception as error:
        print(f"FAILED    {name}: {type(error).__name__}: {error}")
        return False
    return True


def _check_store() -> str:
    from normlens.run.reading import Measurement, Reading
    from normlens.run.store import open_run
    from normlens.run.writer import RunWriter

    with tempfile.TemporaryDirectory() as folder:
        with RunWriter(f"{folder}/check", {}) as writer:
            writer.write([Measurement(0, "check", readings=(Reading("pi", 3.14),))])
        value = open_run(f"{folder}/check").readings("check", 0)[0].value
    if value != 3.14:
        raise RuntimeError(f"wrote 3.14, read {value}")
    return "a run can be written and read"


def _check_second_derivatives() -> str:
    """Differentiate x^3 twice: 6 x at x = 2."""
    torch = importlib.import_module("torch")
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(x**3, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    if float(curvature) != 12.0:
        raise RuntimeError(f"the second derivative of x^3 at 2 is 12, torch says {float(curvature)}")
    return "right"


def _devices() -> str:
    torch = importlib.import_module("torch")
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        found += [f"cuda: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(found)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
