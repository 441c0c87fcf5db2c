from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from normlens.plot import mutual_information_matrix, mutual_information_matrix_data
from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step, **layers):
    readings = []
    for layer, (before, after) in layers.items():
        for name, values in (("matrix_before", before), ("matrix_after", after)):
            readings.append(
                Reading(name, np.array(values), layer=layer, units="nats", dims=("channel", "other_channel"))
            )
    return Measurement(step, "mutual_information", readings=tuple(readings))


def matrix(a, b, c):
    return [[np.inf, a, b], [a, np.inf, c], [b, c, np.inf]]


def test_above_the_diagonal_is_before_below_it_behind_of_the_first_layer_and_the_last_step(write_measurements):
    run = write_measurements(
        [
            measured(0, a=(matrix(9.0, 9.0, 9.0), matrix(9.0, 9.0, 9.0))),
            measured(30, a=(matrix(0.1, 0.2, 0.3), matrix(0.05, 0.1, 0.15)), b=(matrix(1.0, 1.0, 1.0),) * 2),
        ]
    )
    ax = mutual_information_matrix(run, Figure().add_subplot())
    (mesh,) = [artist for artist in ax.child_axes[0].collections if isinstance(artist, QuadMesh)]
    shown = np.ma.filled(mesh.get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[np.nan, 0.1, 0.2], [0.05, np.nan, 0.3], [0.1, 0.15, np.nan]])
    assert set(mutual_information_matrix_data(run)["layer"]) == {"a"}
    assert title(ax) == "Two channels share 0.2 nats in the mean before the gates, 0.1 behind"
    assert ax.child_axes[0].get_ylim() == (3, 0)  # the first channel on top


def test_runs_stand_side_by_side_with_one_scale(write_measurements):
    low = write_measurements([measured(0, a=(matrix(0.1, 0.1, 0.1), matrix(0.1, 0.1, 0.1)))])
    high = write_measurements([measured(0, a=(matrix(0.5, 0.5, 0.5), matrix(0.4, 0.4, 0.4)))])
    ax = mutual_information_matrix({"x": low, "y": high}, Figure().add_subplot())
    meshes = [artist for axes in ax.child_axes[:2] for artist in axes.collections if isinstance(artist, QuadMesh)]
    assert [mesh.get_clim() for mesh in meshes] == [(0, 0.5)] * 2
    assert title(ax) == "Behind the gates two channels share up to 0.4 nats in the mean, in y"


def test_a_run_whose_probe_made_no_matrix_says_how_to_ask_for_one(write_measurements):
    run = write_measurements([Measurement(0, "mutual_information", readings=(Reading("layers", 1.0),))])
    with pytest.raises(NotRecordedError, match="ask for it with matrix='gaussian_copula'"):
        mutual_information_matrix(run, Figure().add_subplot())


def test_what_is_not_finite_is_said(write_measurements):
    nothing = matrix(np.nan, np.nan, np.nan)
    ax = mutual_information_matrix(write_measurements([measured(0, a=(nothing, nothing))]), Figure().add_subplot())
    assert title(ax) == "The information of the channels is not finite"
