from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from normlens.plot import activation_drift, activation_drift_data
from normlens.plot.activation_drift import _edges
from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return activation_drift(runs, Figure().add_subplot())


def meshes(ax):
    panels = [child for child in ax.child_axes if child.get_xlabel() == "optimizer steps"]
    return panels, [next(c for c in panel.collections if isinstance(c, QuadMesh)) for panel in panels]


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def drift(write_measurements, shifts, floor=1.0):
    rows = [
        Measurement(step, "activation_drift", readings=(
            Reading("mean_shift_first", shift, layer="conv"), Reading("mean_shift_floor", floor, layer="conv")))
        for step, shift in enumerate(shifts)
    ]  # fmt: skip
    return write_measurements(rows)


def test_cells_are_shift_over_floor_layer_by_step(healthy_run):
    _, (mesh,) = meshes(draw(healthy_run))
    frame = healthy_run.frame("activation_drift")
    wide = {
        name: frame[frame["name"] == name].pivot_table(index="layer", columns="step", values="value", sort=False)
        for name in ("mean_shift_first", "mean_shift_floor")
    }
    expected = (wide["mean_shift_first"] / wide["mean_shift_floor"]).to_numpy()
    np.testing.assert_allclose(mesh.get_array().reshape(expected.shape), expected, rtol=1e-15)


def test_the_floor_is_the_middle_of_the_colors_and_all_panels_share_them(four_runs):
    panels, drawn = meshes(draw(four_runs))
    assert [panel.get_title() for panel in panels] == ["batch_norm", "group_norm", "layer_norm"]
    for mesh in drawn:
        assert mesh.norm(1.0) == pytest.approx(0.5)
        assert (mesh.norm.vmin, mesh.norm.vmax) == (drawn[0].norm.vmin, drawn[0].norm.vmax)


def test_cells_at_or_below_the_floor_are_hatched_and_no_others(write_measurements):
    panels, _ = meshes(draw(drift(write_measurements, [0.5, 1.0, 1.5])))
    hatched = [c for c in panels[0].collections if c.get_hatch()]
    centers = [path.get_extents().x0 + path.get_extents().width / 2 for c in hatched for path in c.get_paths()]
    assert centers == [0, 1]


def test_a_ratio_that_is_not_finite_gets_a_cross(write_measurements):
    panels, _ = meshes(draw(drift(write_measurements, [0.5, np.nan, 2.0])))
    (crosses,) = [line for line in panels[0].lines if line.get_marker() == "x"]
    np.testing.assert_array_equal(crosses.get_xdata(), [1])


def test_a_floor_of_zero_is_drawn_as_a_cross_and_does_not_raise(write_measurements):
    panels, _ = meshes(draw(drift(write_measurements, [0.5, 0.7], floor=0.0)))
    (crosses,) = [line for line in panels[0].lines if line.get_marker() == "x"]
    np.testing.assert_array_equal(crosses.get_xdata(), [0, 1])
    panels[0].figure.draw_without_rendering()


def test_the_title_counts_the_layers_beyond_the_floor(healthy_run, sick_run, four_runs, make_run):
    assert title(draw(healthy_run)) == "No layer's input has drifted beyond the null floor"
    assert title(draw(make_run(drift=2.0))) == "2 of 2 layers' inputs have drifted; most block3.conv by 4 floors"
    assert title(draw(four_runs)) == "Most drift: layer_norm, block3.conv by 8 floors"
    assert title(draw(sick_run)) == "The drift of block2.conv is NaN from step 180"


@pytest.mark.parametrize("measure", ["mean_shift", "log_scale", "kl", "w1", "ks"])
@pytest.mark.parametrize("since", ["first", "previous", "since"])
def test_each_measure_is_divided_by_its_own_floor(write_measurements, measure, since):
    readings = [Reading(f"{measure}_{since}", 3.0, layer="conv"), Reading(f"{measure}_floor", 1.5, layer="conv")]
    other = "kl" if measure != "kl" else "w1"
    readings += [Reading(f"{other}_{since}", 9.0, layer="conv"), Reading(f"{other}_floor", 1.0, layer="conv")]
    run = write_measurements([Measurement(5, "activation_drift", readings=tuple(readings))])
    (row,) = activation_drift_data(run, measure=measure, since=since).to_dict("records")
    assert (row["shift"], row["floor"], row["ratio"]) == (3.0, 1.5, 2.0)
    ax = activation_drift(run, Figure().add_subplot(), measure=measure, since=since)
    _, (mesh,) = meshes(ax)
    assert mesh.get_array().ravel().tolist() == [2.0]
    if (measure, since) == ("w1", "previous"):
        how = "in distribution (W1) since the last measurement"
        assert title(ax) == f"1 of 1 layers' inputs have drifted {how}; most conv by 2 floors"


def test_a_measure_that_was_not_recorded_is_named(write_measurements):
    with pytest.raises(NotRecordedError, match=r"has read none of w1_first.*needs two measurements"):
        activation_drift_data(drift(write_measurements, [0.5]), measure="w1")


def test_cells_meet_half_way_between_steps():
    np.testing.assert_array_equal(_edges(np.array([0.0, 10.0, 30.0])), [-5, 5, 20, 40])
    np.testing.assert_array_equal(_edges(np.array([7.0])), [6.5, 7.5])


def test_the_data_hold_shift_error_floor_and_ratio(healthy_run):
    data = activation_drift_data(healthy_run)
    assert list(data.columns) == ["run", "step", "layer", "shift", "error", "floor", "ratio", "n"]
    assert data["step"].min() == 60  # at the first measurement there is nothing to compare with
