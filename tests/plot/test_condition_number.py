from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import condition_number, condition_number_data
from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return condition_number(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def test_bounds_are_triangles_and_exact_values_are_not(healthy_run):
    ax = draw(healthy_run)
    (triangles,) = [line for line in ax.lines if line.get_marker() == "^"]
    data = condition_number_data(healthy_run)
    np.testing.assert_array_equal(data["bound"], data["step"] >= 150)
    np.testing.assert_array_equal(triangles.get_xdata(), [180, 240, 300])
    np.testing.assert_array_equal(triangles.get_ydata(), data["value"][data["bound"]])
    assert data["value"].iloc[-1] == 500  # half of 50 times the sharpness of 20
    assert "at least" in ax.get_ylabel()
    assert ax.get_yscale() == "log"


def test_the_band_spans_all_tolerances_of_a_single_run(healthy_run, four_runs):
    (band,) = draw(healthy_run).collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.1 * 200)
    assert heights.max() == pytest.approx(10 * 1000)
    assert not draw(four_runs).collections


def test_the_title_gives_both_ends_or_the_extremes_and_says_what_is_a_bound(healthy_run, four_runs):
    assert title(draw(healthy_run)) == "Condition number 200 → ≥ 500"
    assert title(draw(four_runs)) == ("Final condition number: smallest batch_norm (≥ 500), largest none (≥ 1.1e+03)")


def test_values_without_bound_curve_or_counts_are_enough(write_measurements):
    run = write_measurements([Measurement(3, "condition_number", readings=(Reading("kappa", 7.0),))])
    row = condition_number_data(run).iloc[0]
    assert (row["step"], row["value"], row["bound"]) == (3, 7.0, False)
    assert np.isnan(row["low"])
    draw(run).figure.draw_without_rendering()


def test_a_layer_of_its_own_is_not_taken_for_the_network(write_measurements):
    readings = (Reading("kappa", 7.0), Reading("kappa", 9.0, layer="conv"))
    run = write_measurements([Measurement(3, "condition_number", readings=readings)])
    assert list(condition_number_data(run)["value"]) == [7.0]


def test_a_probe_that_read_no_condition_number_is_an_error(write_measurements):
    run = write_measurements([Measurement(3, "condition_number", readings=(Reading("nullity", 7.0),))])
    with pytest.raises(NotRecordedError, match="none of kappa, kappa_lower"):
        condition_number_data(run)


def test_a_run_of_bounds_alone_is_drawn_as_bounds(write_measurements):
    def at(step, lower):
        readings = (
            Reading("kappa_lower", lower, n=64),
            Reading("kappa_quantile", np.array([np.nan, 12.0]), dims=("share_grid",)),
            Reading("curve", np.array([np.nan, lower]), dims=("tolerance_grid",)),
        )
        return Measurement(step, "condition_number", readings=readings)

    run = write_measurements([at(0, 100.0), at(10, 300.0)])
    data = condition_number_data(run)
    assert list(data["bound"]) == [True, True]
    assert list(data["value"]) == [100, 300]
    assert list(data["n"]) == [64, 64]
    ax = draw(run)
    assert title(ax) == "Condition number ≥ 100 → ≥ 300"
    (triangles,) = [line for line in ax.lines if line.get_marker() == "^"]
    np.testing.assert_array_equal(triangles.get_ydata(), [100, 300])
