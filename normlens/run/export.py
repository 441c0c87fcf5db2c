"""A run in the formats of other tools: CSV and JSON lines in core, Parquet and netCDF with the extra ``export``."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from normlens.run.store import LabeledArray, Run

__all__ = ["to_csv", "to_jsonl", "to_netcdf", "to_parquet"]


def to_csv(run: Run, path: Path) -> None:
    """Write the tidy table of all probes as CSV (UTF-8, a header line, all text in quotes)."""
    run.to_pandas().to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)  # a name may hold a carriage return


def to_jsonl(run: Run, path: Path) -> None:
    """Write one JSON object a reading, arrays of any shape included; what is not finite is written as a string."""
    with path.open("w", encoding="utf-8") as lines:
        for measurement in run.with_readings():
            for r in measurement.readings:
                line = {
                    "probe": measurement.probe, "step": measurement.step, "mode": measurement.mode,
                    "layer": r.layer, "name": r.name, "units": r.units, "dims": list(r.dims), "n": r.n,
                    "value": _plain(r.array.tolist()), "error": _plain(r.error),
                }  # fmt: skip
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def to_parquet(run: Run, path: Path) -> None:
    """Write the tidy table of all probes as Parquet.

    Raises:
        ImportError: pyarrow is not installed.
    """
    _need("pyarrow", "Parquet")
    run.to_pandas().to_parquet(path, index=False)


def to_netcdf(run: Run, path: Path) -> None:
    """Write every reading, stacked over steps, as a variable ``probe/layer/name`` of one netCDF-4 file.

    Each variable has its own dimensions (steps differ from probe to probe). Slashes in names become underscores.
    What cannot be stacked, because its shape or a coordinate changes, is one variable ``…/step`` for each step.

    Raises:
        ImportError: xarray, h5netcdf or h5py is not installed.
    """
    _need("xarray", "netCDF")
    _need("h5netcdf", "netCDF")
    _need("h5py", "netCDF")
    import xarray

    xarray.Dataset(_variables(run), attrs={"normlens_run": run.name}).to_netcdf(path, engine="h5netcdf")


def _variables(run: Run) -> dict[str, tuple[list[str], NDArray[Any]]]:
    """Map each variable, and each coordinate, to its dimensions and its values."""
    variables: dict[str, tuple[list[str], NDArray[Any]]] = {}
    for probe in run.probes:
        for layer, name in run.names(probe):
            for suffix, (values, coords) in _stacks(run, probe, layer, name):
                key = "_".join(part.replace("/", "_") for part in (probe, layer, name, suffix) if part)
                dims = {dim: f"{key}_{dim}" for dim in coords}
                variables[key] = (list(dims.values()), values)
                variables |= {dims[dim]: ([dims[dim]], at) for dim, at in coords.items()}
    return variables


def _stacks(run: Run, probe: str, layer: str, name: str) -> list[tuple[str, LabeledArray]]:
    """One array over all steps, or, where the shape or a coordinate changes, one for each step."""
    try:
        return [("", run.array(probe, name, layer=layer))]
    except ValueError:
        measured = [m.step for m in run.with_readings(probe) for r in m.readings if (r.layer, r.name) == (layer, name)]
        return [(f"step{step}", run.array(probe, name, layer=layer, step=step)) for step in dict.fromkeys(measured)]


def _plain(value: Any) -> Any:
    """Return ``value`` with non-finite numbers as strings: JSON has none, and null would hide which one it was."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, complex) else value


def _need(module: str, what: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{what} export needs {module}, which is not installed: pip install 'normlens[export]'")
