"""Which runs a figure shows, under which names and in which colors, and which of them lack what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from normlens.plot.style import palette
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["PANELS", "Gathered", "display_name", "gather", "layer_order", "named", "select", "with_room"]

PANELS = 8
"""Runs that stand side by side at most; of more, nothing can be read."""


@dataclass(frozen=True)
class Gathered:
    """The table of a figure and where it comes from.

    Attributes:
        table: one row for each number, first column ``run``.
        runs: the runs that have the data, by name.
        missing: the names of those that do not.
        colors: one color for each run, by its position among all that were asked for.
        crowded: the names of those that have the data and no room.
    """

    table: pd.DataFrame
    runs: dict[str, Run]
    missing: tuple[str, ...]
    colors: dict[str, str]
    crowded: tuple[str, ...] = ()

    def each(self) -> Iterable[tuple[str, str, pd.DataFrame]]:
        """Yield name, color and table of each run that has data."""
        for name in self.runs:
            yield name, self.colors[name], self.table[self.table["run"] == name]


def display_name(run: Run) -> str:
    """Return the name in the run's header, or else its file's."""
    return _storable(run.header.get("name") or run.name)


def named(runs: Run | Mapping[str, Run]) -> dict[str, Run]:
    """Return the runs by name: a single one under its :func:`display_name`.

    Raises:
        TypeError: it is neither a run nor a mapping of runs.
        ValueError: the mapping is empty.
    """
    if isinstance(runs, Run):
        return {display_name(runs): runs}
    if not isinstance(runs, Mapping):
        raise TypeError(f"a figure needs a Run or a mapping name -> Run; got {type(runs).__name__}; see open_run")
    if not runs:
        raise ValueError("a figure needs at least one run; got an empty mapping; pass {'name': open_run(path)}")
    return {_storable(name): run for name, run in runs.items()}


def gather(runs: Run | Mapping[str, Run], read: Callable[[Run], pd.DataFrame]) -> Gathered:
    """Read one table from each run and stack them; runs without the data are left out and named.

    Args:
        runs: one run, or several by name.
        read: from a run to its table; raises NotRecordedError where the run lacks the data.

    Raises:
        NotRecordedError: no run has it; the error of the first one.
    """
    every = named(runs)
    colors = dict(zip(every, palette(len(every)), strict=True))
    tables: list[pd.DataFrame] = []
    errors: dict[str, NotRecordedError] = {}
    for name, run in every.items():
        try:
            table = read(run).copy()
        except NotRecordedError as error:
            errors[name] = error
            continue
        table.insert(0, "run", name)
        tables.append(table)
    if not tables:
        raise next(iter(errors.values()))
    having = {name: run for name, run in every.items() if name not in errors}
    return Gathered(pd.concat(tables, ignore_index=True), having, tuple(errors), colors)


def with_room(gathered: Gathered, most: int = PANELS) -> Gathered:
    """Return what a figure with a panel for each run can show: the first ``most`` runs; the others are ``crowded``."""
    shown = dict(list(gathered.runs.items())[:most])
    rows = gathered.table[gathered.table["run"].isin(shown)].reset_index(drop=True)
    return replace(gathered, table=rows, runs=shown, crowded=tuple(name for name in gathered.runs if name not in shown))


def select(run: Run, probe: str, *names: str) -> pd.DataFrame:
    """Return the rows of the named readings of a probe.

    Raises:
        NotRecordedError: the run has no reading of the probe, or none of those names.
    """
    frame = run.frame(probe)
    rows = frame[frame["name"].isin(names)]
    if rows.empty:
        raise NotRecordedError(
            f"{run.name}: probe {probe!r} has read none of {', '.join(names)}; "
            f"it has: {', '.join(frame['name'].unique())}"
        )
    return rows.reset_index(drop=True)


def layer_order(gathered: Gathered) -> list[str]:
    """Return the layers of the table in network order, input first: as in the headers, else as first recorded."""
    recorded = list(dict.fromkeys(gathered.table["layer"]))
    listed: list[str] = []
    for run in gathered.runs.values():
        layers = run.header.get("layers")
        listed += [str(name) for name in layers] if isinstance(layers, list) else []
    present = set(recorded)
    return list(dict.fromkeys([name for name in listed if name in present] + recorded))


def _storable(name: object) -> str:
    """A lone surrogate, which no table or file can hold, becomes its escape, as in the store."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")
