"""Table: a frame as cells of text for the page, cut where a browser or a reader would give up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["LIMIT", "Row", "Table", "tabulate"]

LIMIT = 2000
"""Rows: more of them make a page slow, and nobody reads them there."""

_UNKNOWN_IS_NAN = ("error", "floor")  # a NaN there says that nobody knows, elsewhere it is the result


@dataclass(frozen=True)
class Row:
    """The cells of a row, and the layer that the page's filter looks at (None: the filter leaves the row alone)."""

    cells: tuple[str, ...]
    layer: str | None


@dataclass(frozen=True)
class Table:
    """What the page shows of a frame.

    Attributes:
        columns: the headings.
        rows: at most ``limit`` of them.
        total: how many rows the frame has.
        numeric: for each column, whether it holds numbers.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    total: int
    numeric: tuple[bool, ...]

    @property
    def cut(self) -> bool:
        """Whether rows were left out."""
        return self.total > len(self.rows)


def tabulate(frame: pd.DataFrame, limit: int = LIMIT) -> Table:
    """Return a frame as text: four significant digits, ``–`` for what is absent, ``NaN`` for what is not a number.

    Args:
        frame: any table; its column ``layer``, if it has one, is what the page's filter looks at.
        limit: rows that are kept.
    """
    columns = tuple(map(str, frame.columns))
    kept = frame.head(limit)
    cells = [[_cell(value, column) for value in kept[column]] for column in frame.columns]
    layers = cells[columns.index("layer")] if "layer" in columns else [None] * len(kept)
    rows = tuple(Row(tuple(row), layer) for row, layer in zip(zip(*cells, strict=True), layers, strict=True))
    numeric = tuple(bool(pd.api.types.is_numeric_dtype(frame[column])) for column in frame.columns)
    return Table(columns, rows, len(frame), numeric)


def _cell(value: object, column: str) -> str:
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return "–" if column in _UNKNOWN_IS_NAN else "NaN"
        return f"{100 * value:.1f} %" if column == "test accuracy" else f"{value:.4g}".replace("-", "−")
    return str(value)
