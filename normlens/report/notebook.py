"""Run: a recorded run that shows itself in a notebook: verdict, small table, overview."""

from __future__ import annotations

import html
import os

from normlens import plot
from normlens.plot.collect import display_name
from normlens.plot.overview import overview_size
from normlens.plot.style import clean
from normlens.report.diagnose import diagnose
from normlens.report.finding import SHAPES
from normlens.report.snapshot import Snapshot
from normlens.report.summary import summary
from normlens.report.svg import svg
from normlens.report.tables import tabulate
from normlens.report.verdict import verdict
from normlens.run import store
from normlens.run.errors import NotRecordedError, RunError

__all__ = ["Run", "open_run"]

MARKS = {"healthy": SHAPES["note"], "look here": SHAPES["look"], "sick": SHAPES["sick"]}


class Run(store.Run):
    """A recorded run, as :class:`normlens.run.store.Run`; alone in a cell it shows how it is."""

    def _repr_html_(self) -> str:
        try:
            return _show(Snapshot(self))
        except RunError as error:  # a traceback in place of a picture would hide the other cells' results
            return f"<p>{SHAPES['sick']} {_text(str(error))}</p>"


def open_run(path: str | os.PathLike[str], *, recover: bool = False) -> Run:
    """Open a recorded run for reading; opening executes nothing that the file contains.

    Args:
        path: the run's file, with or without ``.sqlite``.
        recover: read what is whole of a damaged file; ``run.damage`` says what was left out.

    Raises:
        RunNotFoundError: there is no such file.
        RunFormatError: it is not a normlens run, or a newer one.
        RunCorruptError: it is damaged.
    """
    found = store.open_run(path, recover=recover)
    return Run(found.path, recover=recover)


def _show(run: store.Run) -> str:
    name, findings = display_name(run), diagnose(run)
    word = verdict(findings)
    worst = f": {findings[0].message}" if findings else ""
    where = f" ({findings[0].layer})" if findings and findings[0].layer else ""
    head = f"<p><b>{MARKS[word]} {word}</b> {_text(name)}{_text(worst)}{_text(where)}</p>"
    try:
        picture = f'<div style="max-width: 60rem">{svg(plot.overview, {name: run}, overview_size(run), [name])}</div>'
    except NotRecordedError:
        picture = ""
    return f"{head}{_table(run, name)}{picture}"


def _table(run: store.Run, name: str) -> str:
    table = tabulate(summary({name: run}))
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    body = "".join(f"<td>{_text(cell)}</td>" for row in table.rows for cell in row.cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody></table>"


def _text(text: str) -> str:
    return html.escape(clean(text))
