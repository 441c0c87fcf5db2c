from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import hessian_spectrum, hessian_spectrum_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return hessian_spectrum(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def spectrum(write_measurements, *readings):
    return write_measurements([Measurement(5, "hessian_spectrum", readings=readings)])


def test_the_largest_is_thick_the_next_thin_and_the_smallest_dotted(healthy_run):
    ax = draw(healthy_run)
    recorded = [healthy_run.array("hessian_spectrum", name).values for name in ("top", "bottom")]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 6]
    for values, line in zip(np.concatenate(recorded, axis=1).T, lines, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert [line.get_linewidth() > 1 for line in lines] == [True, False, False, False, False]
    assert [line.get_linestyle() for line in lines] == ["-"] * 3 + [":"] * 2


def test_only_the_largest_eigenvalue_has_the_error_of_lambda_max(healthy_run):
    data = hessian_spectrum_data(healthy_run)
    largest = (data["end"] == "top") & (data["index"] == 0)
    np.testing.assert_allclose(data.loc[largest, "error"], 0.001 * data.loc[largest, "value"])
    assert data.loc[~largest, "error"].isna().all()
    (band,) = draw(healthy_run).collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(20 * 1.001)


def test_the_axis_is_logarithmic_and_on_both_sides_of_zero_where_some_are_negative(healthy_run, write_measurements):
    assert draw(healthy_run).get_yscale() == "symlog"
    top = Reading("top", np.array([100.0, 1.0]), dims=("index",))
    assert draw(spectrum(write_measurements, top)).get_yscale() == "log"


def test_the_scalar_alone_is_enough_and_zeros_or_nans_do_not_break_the_axis(write_measurements):
    run = spectrum(write_measurements, Reading("lambda_max", 3.0, error=0.5))
    assert hessian_spectrum_data(run)[["end", "index", "value", "error"]].values.tolist() == [["top", 0, 3.0, 0.5]]
    for value in (0.0, np.nan, -2.0, np.inf):
        draw(spectrum(write_measurements, Reading("lambda_max", value))).figure.draw_without_rendering()


def test_the_title_gives_both_ends_or_the_extremes(healthy_run, four_runs):
    assert title(draw(healthy_run)) == "The largest curvature went from 4 to 20 ± 0.02"
    assert title(draw(four_runs)) == "Final largest curvature: flattest batch_norm (20), sharpest none (44)"
