"""A logarithmic x axis for figures that have their layers down the side."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["log_x_axis"]


def log_x_axis(ax: Axes) -> None:
    """Make the x axis logarithmic: ticks at decades, and where there are fewer than two at 2 and 5 between them.

    Args:
        ax: with its limits set or its data drawn.
    """
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    if high / low < 100:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
