from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import representation_alignment, representation_alignment_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return representation_alignment(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def run_of(write_measurements, **readings):
    made = tuple(Reading(name, value) for name, value in readings.items())
    return write_measurements([Measurement(step, "representation_alignment", readings=made) for step in (0, 5)])


def test_all_parameters_are_solid_and_the_last_layer_dotted_with_ranks_in_the_table(healthy_run):
    ax, data = draw(healthy_run), representation_alignment_data(healthy_run)
    for kind, style, rank, size in (("residual", "-", 320, 320), ("residual_last", ":", 330, 2560)):
        rows = data[data["name"] == kind]
        (line,) = [one for one in ax.lines if one.get_linestyle() == style]
        np.testing.assert_array_equal(line.get_ydata(), rows["value"])
        assert rows["rank"].iloc[-1] == rank
        assert (rows["rows"] == size).all()
    assert ax.get_ylabel() == "residual:  — ● all parameters  ··· ○ last layer"


def test_one_kind_of_residual_alone_is_named_on_the_axis(write_measurements):
    assert draw(run_of(write_measurements, residual_last=0.5)).get_ylabel() == "residual, last layer"
    assert draw(run_of(write_measurements, residual=0.5)).get_ylabel() == "residual, all parameters"


def test_zero_is_on_the_axis_and_rounding_does_not_fill_it(write_measurements):
    low, high = draw(run_of(write_measurements, residual=1e-14)).get_ylim()
    assert low < 0 < 0.1 < high < 0.2


def test_the_title_says_how_much_is_out_of_reach(healthy_run, four_runs, write_measurements):
    assert title(draw(healthy_run)) == "0.25 % of the targets are out of reach; rank 320 of 320"
    assert title(draw(four_runs)) == "Targets out of reach: least batch_norm (0.25 %), most none (5.73 %)"
    reached = run_of(write_measurements, residual=1e-9, rank=320.0, rows=320.0)
    assert title(draw(reached)) == "Every target can be reached to first order; rank 320 of 320"
    assert title(draw({"a": reached, "b": reached})) == "Every target can be reached to first order, in every run"
    last = run_of(write_measurements, residual_last=0.5)
    assert title(draw(last)) == "50 % of the targets are out of reach"


def test_a_residual_that_is_not_a_number_is_said(write_measurements):
    assert title(draw(run_of(write_measurements, residual=np.nan))) == "The residual is not a number"


def test_of_a_single_step_the_last_layer_is_a_circle_and_all_parameters_a_disk(write_measurements):
    ax = draw(run_of(write_measurements, residual=0.25, residual_last=0.5))
    faces = {float(line.get_ydata()[-1]): line.get_markerfacecolor() for line in ax.lines}
    assert faces[0.5] == "none"
    assert faces[0.25] != "none"
