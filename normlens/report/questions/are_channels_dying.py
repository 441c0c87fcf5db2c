"""are_channels_dying: dead channels, and the distance of the others to the elimination singularity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest, rows
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["are_channels_dying"]

HEADING = "Are channels dying?"
PROBE = "elimination"


def are_channels_dying(runs: Mapping[str, Run]) -> Question:
    """Answer from the channels that were off for the whole probe batch, and from the lowest offset.

    Args:
        runs: runs by name.
    """
    try:
        channels = plot.elimination_data(runs)
    except NotRecordedError:
        return Question(HEADING, 20, PROBE, absence=unanswered(runs, PROBE))
    since = _first_deaths(runs)
    said = {
        str(name): sentence(_say(of_run, since.get(str(name)))) for name, of_run in channels.groupby("run", sort=False)
    }
    note = method(
        runs, PROBE, "offset", "dead",
        estimator="offset s = E z / Std z of what enters the nonlinearity, over samples and positions; a Gaussian "
        "channel is active for a share Phi(s) of its inputs; dead = never active on the probe batch",
        error="a channel that was off for all n values may still be active for up to 3/n of all inputs (95 % bound)",
        reference="S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille 2019, arXiv:1911.09738: elimination singularities",
    )  # fmt: skip
    figures = [plot.elimination]
    figures += [plot.elimination_map] if _recorded(runs, "std") else []  # which older runs lack
    figures += [plot.dead_channels] if _recorded(runs, "dead") else []
    return Question(HEADING, 20, PROBE, said, tuple(figures), _table(runs), note)


def _recorded(runs: Mapping[str, Run], name: str) -> bool:
    return any(len(rows(run, PROBE, name)) for run in runs.values())


def _first_deaths(runs: Mapping[str, Run]) -> dict[str, int]:
    """The first step with a dead channel, of the runs that have one."""
    counted = {name: rows(run, PROBE, "dead") for name, run in runs.items()}
    dead = {name: table.loc[table["value"] > 0, "step"] for name, table in counted.items()}
    return {name: int(steps.min()) for name, steps in dead.items() if len(steps)}


def _say(channels: pd.DataFrame, since: int | None) -> str:
    dead = int(channels["dead"].sum())
    if not dead:
        lowest = channels.iloc[int(np.argmin(channels["offset"].fillna(np.inf)))]
        least = f"the lowest offset is {number(float(lowest['offset']))} in {lowest['layer'] or 'the network'}"
        return f"no, none of {len(channels)} channels is dead and {least}"
    layers = channels.groupby("layer", sort=False)["dead"].agg(["sum", "size"]).reset_index()
    worst = layers.iloc[int(np.argmax(layers["sum"] / layers["size"]))]
    start = "" if since is None else f", the first by step {since}"
    most = f"{worst['layer'] or 'the network'} ({worst['sum']} of {worst['size']})"
    return f"yes, {dead} of {len(channels)} channels are dead, most in {most}{start}"


def _table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """The counts of each layer at the last measurement."""
    tables = []
    for name, run in runs.items():
        counts = latest(rows(run, PROBE, "dead", "near_dead", "channels", "margin"))
        if len(counts):
            wide = counts.pivot_table(index=["step", "layer"], columns="name", values="value", sort=False)
            tables.append(wide.reset_index().assign(run=name))
    table = pd.concat(tables, ignore_index=True) if tables else plot.elimination_data(runs)
    wanted = ["run", "step", "layer", "channels", "dead", "near_dead", "margin"]
    return table[[column for column in wanted if column in table.columns]]
