from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from normlens.plot import loss_surface_3d, loss_surface_3d_data, loss_surface_data
from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement, Reading


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to matplotlib's ``plot_surface``: x, y, z for each surface."""
    calls = []
    original = Axes3D.plot_surface

    def record(self, x, y, z, **settings):
        calls.append((x, y, z, settings["facecolors"]))
        return original(self, x, y, z, **settings)

    monkeypatch.setattr(Axes3D, "plot_surface", record)
    return calls


def draw(runs):
    ax = loss_surface_3d(runs, Figure(figsize=(8, 6)).add_subplot())
    ax.figure.draw_without_rendering()
    return ax


def test_heights_are_the_recorded_losses_or_their_logarithms_over_the_recorded_grid(drawn, healthy_run):
    draw(healthy_run)
    ((x, y, z, _),) = drawn
    recorded = healthy_run.array("loss_surface", "loss", step=300)
    assert recorded.values.max() > 10 * recorded.values.min() > 0
    np.testing.assert_allclose(z, np.log10(recorded.values.T), rtol=1e-14)
    np.testing.assert_array_equal(x[0], recorded.coords["x"])
    np.testing.assert_array_equal(y[:, 0], recorded.coords["y"])


def test_a_loss_that_spans_less_than_a_decade_or_is_negative_is_its_own_height(drawn, write_measurements):
    values = np.array([[1.0, 2, 3], [0, -1, 1], [2, 2, 2]])
    run = write_measurements([Measurement(0, "loss_surface", readings=(Reading("loss", values, dims=("x", "y")),))])
    draw(run)
    np.testing.assert_array_equal(drawn[0][2], values.T)


def test_all_surfaces_have_one_scale_of_height_and_one_of_color(drawn, four_runs):
    ax = draw(four_runs)
    solids = [child for child in ax.child_axes if isinstance(child, Axes3D)]
    assert len(solids) == 4
    assert len({solid.get_zlim() for solid in solids}) == 1
    assert [solid.get_title() for solid in solids] == list(four_runs)
    colors = {}
    for _, _, z, faces in drawn:
        for height, color in zip(z.ravel(), faces.reshape(-1, 4), strict=True):
            assert colors.setdefault(round(float(height), 9), tuple(color)) == tuple(color)


def test_the_cross_stands_on_the_network_and_the_axes_are_named_after_the_directions(healthy_run):
    (solid,) = draw(healthy_run).child_axes
    (cross,) = [line for line in solid.lines if line.get_marker() == "+"]
    center = healthy_run.array("loss_surface", "center", step=300).values
    np.testing.assert_allclose(np.ravel(cross.get_data_3d()), [0, 0, np.log10(center)], rtol=1e-14)
    assert solid.get_xlabel() == "first random direction"


def test_a_line_has_no_surface_and_the_data_are_those_of_the_contours(write_measurements, healthy_run):
    readings = (Reading("loss", np.ones(3), dims=("x",)),)
    run = write_measurements([Measurement(0, "loss_surface", readings=readings)])
    with pytest.raises(NotRecordedError, match="has read a line, and no plane"):
        draw(run)
    assert loss_surface_3d_data(healthy_run).equals(loss_surface_data(healthy_run))


def test_cells_that_are_not_computed_are_holes(drawn, sick_run):
    draw(sick_run)
    assert np.isnan(drawn[0][2]).sum() == 7
