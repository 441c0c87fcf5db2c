from __future__ import annotations

import numpy as np
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from normlens.plot import loss_surface, loss_surface_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return loss_surface(runs, Figure(figsize=(8, 5)).add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def meshes(ax):
    return [a for axes in ax.child_axes for a in axes.collections if isinstance(a, QuadMesh) and axes.lines]


def line(write_measurements, loss, step=0):
    x = np.linspace(-1, 1, len(loss))
    readings = (Reading("loss", np.array(loss), dims=("x",)), Reading("x", x, dims=("x",)))
    return write_measurements([Measurement(step, "loss_surface", readings=readings)])


def test_a_plane_is_drawn_with_x_across_and_y_up(healthy_run):
    ax = draw(healthy_run)
    (mesh,) = meshes(ax)
    recorded = healthy_run.array("loss_surface", "loss", step=300)
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), np.nan), recorded.values.T)
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :-1, 0] + 0.125, recorded.coords["x"])
    np.testing.assert_allclose(corners[:-1, 0, 1] + 1 / 6, recorded.coords["y"], atol=1e-12)
    assert ax.child_axes[0].get_xlabel() == "first random direction"


def test_all_planes_have_one_color_scale(four_runs):
    shown = meshes(draw(four_runs))
    assert len(shown) == 4
    assert len({mesh.norm.vmin for mesh in shown}) == len({mesh.norm.vmax for mesh in shown}) == 1
    data = loss_surface_data(four_runs)["value"]
    assert (shown[0].norm.vmin, shown[0].norm.vmax) == (data.min(), data.max())


def test_more_planes_than_fit_side_by_side_are_named_and_count_in_the_title(healthy_run, sick_run):
    runs = {**dict.fromkeys([f"healthy {number}" for number in range(27)], healthy_run), "last": sick_run}
    ax = draw(runs)
    assert len(meshes(ax)) == 8
    (words,) = [text.get_text() for text in ax.texts if text.get_text().startswith("not shown")]
    assert " ".join(words.split()).endswith(
        "for want of room: healthy 8, healthy 9, healthy 10, healthy 11 and 16 more"
    )
    assert title(ax) == title(draw({"healthy 0": healthy_run, "last": sick_run}))


def test_a_line_is_a_curve_and_stands_beside_planes(write_measurements, healthy_run):
    run = line(write_measurements, [3.0, 1.0, 2.0])
    ax = draw(run)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, 1, 2])
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [-1, 0, 1])
    both = draw({"line": run, "plane": healthy_run})
    assert len(meshes(both)) == 1
    np.testing.assert_array_equal(both.child_axes[0].lines[0].get_ydata(), [3, 1, 2])


def test_cells_that_are_not_computed_are_empty_and_contours_do_not_need_them(sick_run):
    ax = draw(sick_run)
    (mesh,) = meshes(ax)
    assert np.ma.getmaskarray(mesh.get_array()).sum() == 7
    ax.figure.draw_without_rendering()


def test_surfaces_that_are_flat_or_all_nan_are_drawn(write_measurements):
    for value in (0.0, 1.0, np.nan, np.inf):
        readings = (Reading("loss", np.full((3, 3), value), dims=("x", "y")),)
        run = write_measurements([Measurement(0, "loss_surface", readings=readings)])
        draw(run).figure.draw_without_rendering()
        draw(line(write_measurements, [value] * 3)).figure.draw_without_rendering()


def test_the_title_gives_center_and_rise_or_the_extremes(write_measurements, four_runs):
    assert title(draw(line(write_measurements, [3.0, 1.0, 2.0], step=9))) == (
        "Around step 9 the loss rises from 1 to at most 3"
    )
    assert title(draw(four_runs)) == "The loss rises least around batch_norm (by 11), most around none (by 24.2)"
