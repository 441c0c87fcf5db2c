"""tiny_batches: batch norm in train mode on so few values that its statistics are mostly noise."""

from __future__ import annotations

import pandas as pd

from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows
from normlens.run.store import Run

__all__ = ["tiny_batches"]

NOISE = 0.25
"""Standard error of a batch's mean in standard deviations of the channel, that of 16 independent values; of the scale
it is then 18 %. Below 16 samples a device batch norm lost accuracy in Wu and He's measurements."""


def tiny_batches(run: Run) -> list[Finding]:
    """Return a finding for the noisiest normalization over the batch, if its statistics are too noisy.

    Args:
        run: an opened run.
    """
    noisy = []
    for layer, readings in by_layer(rows(run, "batch_noise")):
        error = history(readings, "statistic_error")
        if len(error) and float(error["value"].iloc[-1]) > NOISE:
            noisy.append((float(error["value"].iloc[-1]), layer, readings))
    return [_finding(layer, readings, len(noisy)) for _, layer, readings in sorted(noisy, key=lambda n: -n[0])[:1]]


def _finding(layer: str, readings: pd.DataFrame, layers: int) -> Finding:
    error = history(readings, "statistic_error")
    batch, values = (float(history(readings, name)["value"].iloc[-1]) for name in ("batch_size", "effective_values"))
    return Finding(
        severity="look",
        probe="batch_noise",
        layer=layer,
        step=int(error.loc[error["value"] > NOISE, "step"].iloc[0]),
        message=f"Batches of {batch:.0f} samples give this normalization {values:.3g} independent values: its means "
        f"are off by {100 * error['value'].iloc[-1]:.0f} % of a standard deviation; so in {layers} "
        f"layer{'' if layers == 1 else 's'}.",
        evidence={
            "statistic_error": float(error["value"].iloc[-1]),
            "error": float(error["error"].iloc[-1]),
            "threshold": NOISE,
            "batch_size": batch,
        },
        advice="Use larger batches, or group norm, batch renorm, batch Kalman norm or cross-iteration batch norm (Wu "
        "and He, ECCV 2018, arXiv:1803.08494).",
    )
