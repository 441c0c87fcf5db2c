"""Draw the README's figures from the runs of the demo: `make figures`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normlens import plot
from normlens.cli.runs import find_runs
from normlens.run.store import Run

HERE = Path(__file__).parent


def draw(function: Callable[..., Axes], runs: Mapping[str, Run], size: tuple[float, float]) -> None:
    """Write one figure as a small PNG on white."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    function(runs, ax=figure.subplots())
    figure.savefig(HERE / f"{function.__name__}.png", dpi=80, metadata={"Software": None})


def main(folder: str) -> None:
    """Draw every figure of the README."""
    runs = find_runs([folder])
    draw(plot.overview, runs, plot.overview_size(runs))
    draw(plot.elimination, runs, (6.4, 4))
    draw(plot.hessian_spectrum, runs, (6.4, 4))
    draw(plot.activation_drift, runs, (6.4, 4))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
