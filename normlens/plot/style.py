"""What all figures share in looks: one color per run, one gray that is legible on white and on black, safe names."""

from __future__ import annotations

import re
import textwrap
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

__all__ = ["NEUTRAL", "clean", "dress", "label", "number", "palette", "shorten", "title"]

NEUTRAL = "#767676"
"""Text and frames: contrast 4.5 : 1 on white and 4.6 : 1 on black; no gray has more on both."""

TITLE_WIDTH = 62
"""Characters of a title's line: what fits beside the axis labels of a figure 6.4 inches wide."""

# Control characters, marks that turn the direction of what follows them, lone surrogates and noncharacters: a figure
# in SVG may hold none of the first and last, and the marks would let a name rewrite its surroundings.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff]"
)


def palette(n: int) -> list[str]:
    """Return ``n`` colors of seaborn's ``colorblind`` palette as hex strings; from the eleventh on they repeat."""
    import seaborn

    return [str(color) for color in seaborn.color_palette("colorblind", max(n, 1)).as_hex()][:n]


def clean(text: object) -> str:
    """Return ``text`` with every character that cannot be printed, or that hides or reorders others, as ``�``."""
    return _UNPRINTABLE.sub("�", str(text))


def shorten(text: object, limit: int = 40) -> str:
    """Return a printable name of at most ``limit`` characters, with ``…`` for what was cut out of its middle."""
    printable = clean(text)
    if len(printable) <= limit:
        return printable
    head = limit // 2
    return f"{printable[:head]}…{printable[len(printable) - (limit - head - 1) :]}"


def label(text: object, limit: int = 40) -> str:
    r"""Return a short printable name for a figure: ``$`` becomes ``\$``, so that it is never parsed as mathematics."""
    return shorten(text, limit).replace("$", r"\$")


def number(value: float) -> str:
    """Return three significant digits, or "NaN", "inf", "−inf"."""
    if np.isnan(value):
        return "NaN"
    return f"{value:.3g}".replace("-", "−")


def title(ax: Axes, text: str, width: int = TITLE_WIDTH, *, size: float = 11, room_below: bool = False) -> None:
    """Set the title, flush left and broken into lines; a name in it is never broken: that could split its ``$``.

    Args:
        ax: the axes.
        text: what the figure answers; names in it have been through :func:`label`.
        width: characters in a line.
        size: of the letters, in points.
        room_below: leave an empty line, for the titles of panels inside the axes.
    """
    lines = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    ax.set_title(lines + ("\n" if room_below else ""), loc="left", color=NEUTRAL, fontsize=size)


def dress(ax: Axes, *, grid: Literal["x", "y", "both", ""] = "both") -> None:
    """Give the axes the neutral text, the two spines, the faint grid and the transparent ground of every figure.

    Args:
        ax: the axes.
        grid: "x", "y", "both", or "" for none.
    """
    ax.patch.set_alpha(0.0)
    ax.tick_params(which="both", colors=NEUTRAL, labelsize=9)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(NEUTRAL)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_color(NEUTRAL)
        axis.label.set_fontsize(10)
        axis.grid(False)
    if grid:
        ax.grid(True, axis=grid, color=NEUTRAL, alpha=0.2, linewidth=0.6)
    ax.set_axisbelow(True)
