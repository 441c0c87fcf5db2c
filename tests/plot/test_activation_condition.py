from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import activation_condition, activation_condition_data
from normlens.run.reading import Measurement, Reading

KINDS = {"kappa_raw": "o", "kappa_centered": "D", "kappa_normalized": "s"}


def draw(runs):
    return activation_condition(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step=0, **layers):
    readings = [
        Reading(kind, value, layer=layer, n=64)
        for layer, values in layers.items()
        for kind, value in zip(KINDS, values, strict=True)
    ]
    return Measurement(step, "activation_condition", readings=tuple(readings))


def test_disks_diamonds_and_squares_are_the_three_matrices_at_the_last_step(healthy_run):
    ax, data = draw(healthy_run), activation_condition_data(healthy_run)
    assert set(data["step"]) == {300}
    for kind, marker in KINDS.items():
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), data.loc[data["name"] == kind, "value"])
        np.testing.assert_array_equal(line.get_ydata(), [0, 1])


def test_each_condition_number_stands_beside_its_tolerance_and_nullity(healthy_run):
    data = activation_condition_data(healthy_run)
    assert (data["tolerance"] == 1e-5).all()
    assert data["nullity"].tolist() == [0] * 3 + [1] * 3


def test_the_title_names_the_worst_input_and_what_normalizing_gains(healthy_run, four_runs, write_measurements):
    assert title(draw(healthy_run)) == "Worst input: block3.conv, κ = 700; centered 233, normalized 77.8"
    assert title(draw(four_runs)).startswith("Worst input: layer_norm, block3.conv, κ = 4.2e+03; centered 1.4e+03")
    run = write_measurements([measured(0, a=(99.0, 9.0, 9.0)), measured(5, a=(4.0, 3.0, 2.0), b=(8.0, 6.0, 5.0))])
    assert title(draw(run)) == "Worst input: b, κ = 8; centered 6, normalized 5"
    lost = write_measurements([measured(a=(np.nan,) * 3)])
    assert title(draw(lost)) == "The inputs' condition number is not finite in any layer"
