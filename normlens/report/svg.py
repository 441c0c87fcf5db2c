"""svg: a figure as text for a page: the same bytes each time, safe beside others, its letters in the page's color."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from normlens.plot.canvas import growing
from normlens.plot.style import NEUTRAL, clean, shorten
from normlens.run.store import Run

__all__ = ["Draw", "svg"]

Draw = Callable[[Run | Mapping[str, Run], Axes | None], Axes]

_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def svg(draw: Draw, runs: Mapping[str, Run], size: tuple[float, float], names: Iterable[str]) -> Markup:
    """Draw a figure and return it as an ``<svg>`` element to stand in a page.

    Text stays text: it is small, can be searched and read out, and takes the page's color. The user's style sheet has
    no part in it.

    Args:
        draw: a figure of :mod:`normlens.plot`.
        runs: runs by name.
        size: width and height in inches.
        names: what may stand shortened in the figure: each gets a tooltip with the whole of it.
    """
    with mpl.style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has other fonts
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        growing(figure, True)
        draw(runs, figure.add_subplot())
        _freeze(figure)
        picture = _save(figure)
    root = ElementTree.fromstring(picture)
    _settle(root, prefix=f"s{hashlib.sha256(picture).hexdigest()[:10]}-")
    _explain(root, names)
    title = " | ".join(dict.fromkeys(text for text in map(_title, figure.axes) if text))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title, "class": "figure"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # serialized: every text is escaped


def _freeze(figure: Figure) -> None:
    """Round the places of the axes: the solver behind the layout leaves noise in their last bits, which ids hash."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in figure.axes:
        left, bottom, width, height = ax.get_position().bounds
        ax.set_position((round(left, 4), round(bottom, 4), round(width, 4), round(height, 4)))


def _save(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "normlens", "svg.image_inline": True}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=150)
    return buffer.getvalue()


def _title(ax: Axes) -> str:
    return clean(" ".join(ax.get_title(loc="left").split()).replace(r"\$", "$"))


def _settle(root: ElementTree.Element, *, prefix: str) -> None:
    """Drop namespaces, styles that would reach the whole page and metadata; make every id the figure's own."""
    for parent in root.iter():
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        parent.attrib = {_local(name): _own(_local(name), value, prefix) for name, value in parent.attrib.items()}


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _own(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "href" and value.startswith("#"):
        return f"#{prefix}{value[1:]}"
    return _REFERENCE.sub(rf"url(#{prefix}\1)", value).replace(NEUTRAL, "currentColor")


def _explain(root: ElementTree.Element, names: Iterable[str]) -> None:
    """Give every text that is the short form of a name a tooltip with the whole of it."""
    whole = {shorten(name, limit): clean(name) for name in names for limit in range(12, 41)}
    for text in root.iter("text"):
        name = whole.get(text.text or "")
        if name is not None and name != text.text:
            ElementTree.SubElement(text, "title").text = name
