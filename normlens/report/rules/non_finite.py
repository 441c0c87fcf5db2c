"""non_finite: NaN or infinity among the readings, where none can be."""

from __future__ import annotations

import numpy as np
import pandas as pd

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import rows
from normlens.run.store import Run

__all__ = ["non_finite"]

INFINITE_BY_DEFINITION = ("offset", "margin")
"""Readings that are infinite for a channel that is constant, which is no fault of the numbers."""

NOT_A_NUMBER_BY_DEFINITION: dict[str, tuple[str, ...]] = {
    # Drifts have no value where every channel of a layer is constant; ``mean`` and ``std``, from which they are
    # computed, show whether the activations themselves are at fault.
    "activation_drift": ("mean_shift", "log_scale", "kl", "w1", "ks"),
    "activation_condition": ("",),
    "batch_noise": (
        "training_batch",
        "mean_noise",
        "std_noise",
        "excess_kurtosis",
        "effective_values",
        "statistic_error",
        "batch_error",
        "running",
        "initial_share",
        "filtered_error",
        "best_prior_weight",
    ),
    "cancellation": ("",),
    "covariate_shift": ("",),
    "fisher_vector": ("",),
    "gradient_flow": ("growth", "predicted"),
    "gradient_predictiveness": ("",),
    "mutual_information": ("",),
    "rank_collapse": ("",),
    "singularity": ("",),
    "variance_shift": ("",),
    # The angle of a gradient that is zero, and the share of a weight that is.
    "weight_dynamics": ("invariance", "angle", "orthogonal_energy", "enorm_gap", "imbalance"),
    # Below the precision of the measurement nothing is known; ``lambda_max`` shows whether the loss is at fault.
    "condition_number": ("curve",),
}
"""Readings by which a probe says that it does not know, by the beginning of their names ("" for all of them)."""


def non_finite(run: Run) -> list[Finding]:
    """Return one finding for what the probes read, and one for what the user logged, each at its first such step.

    What the probes read is sick, unless loss and gradient are known and stayed finite: then it is worth a look.

    Args:
        run: an opened run.
    """
    of_probes = [_bad(run, probe) for probe in run.probes if probe not in ("user", "lens")]
    curve = rows(run, "training_curve", "loss", "gradient_norm", "batch_loss")["value"].to_numpy(float)
    severity = "look" if curve.size and np.isfinite(curve).all() else "sick"
    return [*_finding(severity, of_probes), *_finding("look", [_bad(run, "user")])]


def _bad(run: Run, probe: str) -> pd.DataFrame:
    table = rows(run, probe)
    value = table["value"].to_numpy(float) if len(table) else np.array([])
    names = table["name"].astype(str)
    allowed = np.isinf(value) & names.isin(INFINITE_BY_DEFINITION).to_numpy(bool)
    unknown = names.str.startswith(NOT_A_NUMBER_BY_DEFINITION.get(probe, ())).to_numpy(bool)
    allowed |= unknown
    return pd.DataFrame(table[~np.isfinite(value) & ~allowed]).assign(probe=probe)


def _finding(severity: str, tables: list[pd.DataFrame]) -> list[Finding]:
    bad = pd.concat([table for table in tables if len(table)] or [pd.DataFrame()], ignore_index=True)
    if bad.empty:
        return []
    first = bad.iloc[int(np.argmin(bad["step"]))]
    readings = len(bad.groupby(["probe", "layer", "name", "step"]))
    what, value = f"{first['probe']}/{first['name']}", float(first["value"])
    return [
        Finding(
            severity=severity,
            probe=str(first["probe"]),
            layer=str(first["layer"]),
            step=int(first["step"]),
            message=f"{what} is {number(value)} here for the first time; {readings} readings in all are not finite.",
            evidence={str(first["name"]): value, "readings": readings},
            advice="Lower the learning rate or clip gradients; look for a division by zero or a logarithm of zero "
            "at or before this layer; with half precision, scale the loss.",
        )
    ]
