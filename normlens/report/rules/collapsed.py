"""collapsed: representations that use next to no directions, or units that are copies of each other."""

from __future__ import annotations

import math

from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, latest, rows, since
from normlens.run.store import Run

__all__ = ["collapsed"]

DIRECTIONS = 1.5
"""Effective number of directions that samples differ in: three classes already need two. Healthy runs of MLP and CNN
have 2.3 or more in every layer."""

LEARNED = 0.5
"""Of the first loss: one that has fallen below half shows that what is left of the directions is enough, as one is for
two classes or one number to predict. Of collapsed MLPs and CNNs it stayed above 0.65."""

COPY = 0.99
"""Absolute cosine of two units' incoming weights from which on one of them is redundant: eight degrees."""

SHARE = 0.5
"""Of a layer's units."""


def collapsed(run: Run) -> list[Finding]:
    """Return a finding for each layer whose samples hardly differ, and for each of copied units, at the end.

    That samples hardly differ is none where the loss on the probe batch is known to have fallen all the same.

    Args:
        run: an opened run.
    """
    loss = rows(run, "training_curve", "loss")["value"]
    learned = len(loss) > 0 and float(loss.iloc[-1]) < LEARNED * float(loss.iloc[0])
    return [*([] if learned else _ranks(run)), *_copies(run)]


def _ranks(run: Run) -> list[Finding]:
    found = []
    for layer, readings in by_layer(rows(run, "rank_collapse")):
        rank = history(readings, "effective_rank_centered")
        low = rank["value"] < DIRECTIONS
        if len(rank) and bool(low.iloc[-1]):
            last = rank.iloc[-1]
            message = (
                f"The samples' representations differ in {last['value']:.2f} directions: whatever stands behind this "
                "layer can tell hardly anything apart."
            )
            evidence = {"directions": float(last["value"]), "error": float(last["error"]), "threshold": DIRECTIONS}
            found.append(_finding("rank_collapse", layer, since(rank["step"], low), message, evidence))
    return found


def _copies(run: Run) -> list[Finding]:
    found = []
    for layer, readings in by_layer(rows(run, "elimination", "overlap")):
        of_step = readings.groupby("step")["value"].agg(lambda values: (values >= COPY).mean())
        if len(of_step) and of_step.iloc[-1] >= SHARE and len(latest(readings)) > 2:
            share = float(of_step.iloc[-1])
            message = f"{100 * share:.0f} % of the units have the incoming weights of another one: they are copies."
            evidence = {"copies": share, "error": math.nan, "threshold": SHARE}
            found.append(_finding("elimination", layer, since(of_step.index, of_step >= SHARE), message, evidence))
    return found


def _finding(probe: str, layer: str, step: int, message: str, evidence: dict[str, float]) -> Finding:
    return Finding(
        severity="sick",
        probe=probe,
        layer=layer,
        step=step,
        message=message,
        evidence=evidence,
        advice="Draw the weights at random, each unit its own; with depth, batch norm keeps the rank (Daneshmand et "
        "al., NeurIPS 2020, arXiv:2003.01652).",
    )
