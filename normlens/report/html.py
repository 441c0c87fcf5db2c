"""write_report: one page that says whether runs are healthy, and if not, where and why."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from normlens import catalog, plot
from normlens.plot.canvas import figure_size
from normlens.plot.collect import PANELS, display_name, named
from normlens.plot.overview import overview_size
from normlens.plot.style import clean, palette
from normlens.report.diagnose import diagnose, rules
from normlens.report.finding import SHAPES, Findings
from normlens.report.provenance import Provenance, provenance
from normlens.report.question import Question
from normlens.report.readings import rows
from normlens.report.snapshot import Snapshot
from normlens.report.summary import summary
from normlens.report.svg import Draw, svg
from normlens.report.tables import Table, tabulate
from normlens.report.verdict import verdict
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["render", "write_report"]

QUESTIONS = "normlens.report.questions"
MARKS = {"healthy": SHAPES["note"], "look here": SHAPES["look"], "sick": SHAPES["sick"]}


@dataclass(frozen=True)
class _Patient:
    """A run as the page shows it."""

    name: str
    color: str
    verdict: str
    findings: Findings
    provenance: Provenance


@dataclass(frozen=True)
class _Section:
    """A question with its figures drawn."""

    anchor: str
    question: Question
    pictures: tuple[Markup, ...]
    table: Table


def write_report(runs: Run | Iterable[Run] | Mapping[str, Run], path: str | os.PathLike[str]) -> Path:
    """Write one self-contained HTML page about runs: verdicts, comparison, figures, tables and how it was measured.

    The page needs no network and no other file. Equal runs give equal bytes. It is written beside its place and
    renamed, so that a reader never sees half of it.

    Args:
        runs: one run, several, or several by name; without names those in their headers are taken.
        path: the file to write; parent folders are made.

    Raises:
        TypeError: something in it is not a run.
        ValueError: there is none.
        RunCorruptError: a file is damaged; opened with ``recover=True``, what is whole is shown.
    """
    text = render(runs)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(draft, 0o644)  # a temporary file is private; a report is for others too
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return target


def render(runs: Run | Iterable[Run] | Mapping[str, Run]) -> str:
    """Return the page of :func:`write_report` as text.

    Args:
        runs: one run, several, or several by name.

    Raises:
        TypeError: something in it is not a run.
        ValueError: there is none.
    """
    every = {name: Snapshot(run) for name, run in _by_name(runs).items()}
    colors = palette(len(every))
    sections = _sections(every)
    patients = [_examine(name, run, color) for (name, run), color in zip(every.items(), colors, strict=True)]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            patients=patients,
            sections=sections,
            anchors={section.question.probe: section.anchor for section in reversed(sections)},
            summary=tabulate(summary(every)),
            overview=_picture(plot.overview, every, overview_size(every)),
            rules=rules(),
            marks=MARKS,
            shapes=SHAPES,
            layers=sorted({row.layer for section in sections for row in section.table.rows if row.layer})[:1000],
            colors=dict(zip(every, colors, strict=True)),
            files={patient.name: patient.provenance.file for patient in patients},
        )
    )


def _by_name(runs: Run | Iterable[Run] | Mapping[str, Run]) -> dict[str, Run]:
    if isinstance(runs, Run | Mapping):
        return named(runs)
    result: dict[str, Run] = {}
    for run in runs:
        if not isinstance(run, Run):
            raise TypeError(f"a report needs runs, as open_run returns them; got {type(run).__name__}")
        name, copies = display_name(run), count(2)
        while name in result:
            name = f"{display_name(run)} ({next(copies)})"
        result[name] = run
    return named(result)


def _examine(name: str, run: Run, color: str) -> _Patient:
    findings = diagnose(run)
    return _Patient(name, color, verdict(findings), findings, provenance(run))


def _sections(runs: Mapping[str, Run]) -> list[_Section]:
    asked = {name: catalog.load(QUESTIONS, name)(runs) for name in catalog.names(QUESTIONS)}
    sections = []
    for name, question in sorted(asked.items(), key=lambda item: item[1].order):
        pictures = [_picture(draw, runs, _size(draw, runs)) for draw in question.figures]
        drawn = tuple(picture for picture in pictures if picture)
        sections.append(_Section(name.replace("_", "-"), question, drawn, tabulate(question.table)))
    return sections


def _picture(draw: Draw, runs: Mapping[str, Run], size: tuple[float, float]) -> Markup:
    """The figure, or nothing where nothing was measured, which the section says in words."""
    tables = [rows(run, probe) for run in runs.values() for probe in run.probes]
    layers = dict.fromkeys(str(layer) for table in tables for layer in table["layer"].unique())
    try:
        return svg(draw, runs, size, [*runs, *layers])
    except NotRecordedError:
        return Markup("")


def _size(draw: Draw, runs: Mapping[str, Run]) -> tuple[float, float]:
    """Higher where several runs share the rows of many layers, or stand below each other."""
    try:
        table = getattr(plot, f"{draw.__name__}_data")(runs)
    except NotRecordedError:
        return figure_size()
    if draw is plot.loss_surface_3d:
        return figure_size()[0], 2.0 + 2.8 * -(-min(table["run"].nunique(), PANELS) // 2)
    layers = table["layer"].nunique() if "layer" in table else 0
    return figure_size(int(layers * (1 + (len(runs) - 1) / 3)))


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("normlens.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: object) -> object:
    """Whatever goes into the page as text: line breaks become spaces, what cannot be printed is shown as ``�``."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return clean(" ".join(value.split("\n")).replace("\t", " ").replace("\r", " "))
    return value
