from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import weight_dynamics, weight_dynamics_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return weight_dynamics(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def run_of(write_measurements, steps, **readings):
    """One reading of each name for each of its values, a layer each, at every step."""
    made = [
        Reading(name, value, layer=f"layer{i}") for name, values in readings.items() for i, value in enumerate(values)
    ]
    return write_measurements([Measurement(step, "weight_dynamics", readings=tuple(made)) for step in steps])


def test_the_line_is_the_median_over_layers_and_the_band_reaches_all_of_them(write_measurements):
    run = run_of(write_measurements, (0, 10), effective_rate=(0.1, 0.4, 0.2), angle=(0.1, 0.3, 0.5))
    data = weight_dynamics_data(run).set_index(["step", "name"])
    rate = data.loc[(10, "effective_rate")]
    assert (rate["value"], rate["lowest"], rate["highest"], rate["layers"]) == (0.2, 0.1, 0.4, 3)
    upper, lower = draw(run).child_axes
    for panel, middle, ends in ((upper, 0.2, (0.1, 0.4)), (lower, 0.3, (0.1, 0.5))):
        np.testing.assert_array_equal(panel.lines[0].get_ydata(), [middle, middle])
        (band,) = panel.collections
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == ends


def test_angles_have_a_panel_only_where_a_step_was_recorded_and_their_equilibrium_is_dotted(make_run, healthy_run):
    assert not draw(make_run(steps=(0,))).child_axes
    lower = draw(healthy_run).child_axes[1]
    assert [line.get_linestyle() for line in lower.lines] == [":", "-"]
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), np.full(5, 0.0073))
    assert lower.get_ylabel() == "angle [rad]\n··· equilibrium"


def test_a_layer_that_is_not_a_number_is_not_left_out_of_the_median(write_measurements):
    run = run_of(write_measurements, (0,), effective_rate=(0.1, np.nan, 0.2))
    assert weight_dynamics_data(run)["value"].isna().all()
    assert title(draw(run)) == "The effective learning rate is not a number"


def test_the_axis_is_logarithmic_over_more_than_a_decade_only(write_measurements):
    for values, scale in (((1.0, 9.0), "linear"), ((1.0, 11.0), "log"), ((0.0, 11.0), "linear")):
        records = [
            Measurement(i, "weight_dynamics", readings=(Reading("effective_rate", v),)) for i, v in enumerate(values)
        ]
        assert draw(write_measurements(records)).get_yscale() == scale


def test_the_title_compares_the_last_angle_with_its_equilibrium(healthy_run, four_runs):
    last = weight_dynamics_data(healthy_run).query("step == 300 and name == 'angle'")["value"].item()
    assert last / 0.0073 == pytest.approx(1.047, abs=1e-3)
    assert title(draw(healthy_run)) == "Weights turn at 1.05 times their equilibrium angle"
    said = title(draw(four_runs))
    assert said == "Angle per step over the equilibrium's: lowest batch_norm (1.05), highest none (1.34)"


def test_without_an_equilibrium_the_title_says_the_effective_rate(write_measurements):
    first = Measurement(0, "weight_dynamics", readings=(Reading("effective_rate", 0.4),))
    runs = {
        str(end): write_measurements(
            [first, Measurement(9, "weight_dynamics", readings=(Reading("effective_rate", end),))]
        )
        for end in (0.1, 0.3)
    }
    assert title(draw(runs["0.1"])) == "Effective learning rate 0.4 → 0.1"
    assert title(draw(runs)) == "Final effective learning rate: lowest 0.1 (0.1), highest 0.3 (0.3)"
