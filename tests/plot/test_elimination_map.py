from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import elimination_map, elimination_map_data
from normlens.plot.elimination import NEARLY_OFF
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return elimination_map(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


@pytest.fixture
def run_of(write_measurements):
    def made(mean, std, rate, step=5):
        arrays = {"mean": mean, "std": std, "deactivation_rate": rate}
        readings = tuple(Reading(n, np.array(a), layer="relu", dims=("channel",)) for n, a in arrays.items())
        return write_measurements([Measurement(0, "elimination", readings=readings[:2]),
                                   Measurement(step, "elimination", readings=readings)])  # fmt: skip

    return made


def points(ax, marker):
    (line,) = [line for line in ax.lines if line.get_marker() == marker]
    return np.stack([line.get_xdata(), line.get_ydata()], 1)


def test_channels_stand_at_mean_and_spread_over_the_layer_s_root_mean_square(run_of):
    """rms^2 = mean of std^2 + mean^2 = (9 + 16 + 0 + 25)/2 = 25."""
    run = run_of([3.0, 0.0], [4.0, 5.0], [0.2, 0.5])
    np.testing.assert_allclose(points(draw(run), "."), [[0.6, 0.8], [0.0, 1.0]], rtol=1e-15)
    data = elimination_map_data(run)
    assert set(data["step"]) == {5}
    assert (data["value"] ** 2).sum() / 2 == pytest.approx(1)


def test_a_dead_channel_is_a_cross_and_others_are_dots(run_of):
    ax = draw(run_of([-5.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.5, 0.0]))
    assert len(points(ax, "x")) == 1
    assert points(ax, "x")[0][1] == 0
    assert len(points(ax, ".")) == 2
    assert title(ax) == "1 of 3 channels stand in the dead region"


def test_on_a_ray_the_offset_is_what_it_says_and_the_wedge_ends_at_the_first(healthy_run):
    ax = draw(healthy_run)
    rays = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 0]
    offsets = [line.get_xdata()[1] / line.get_ydata()[1] for line in rays]
    assert offsets == pytest.approx([NEARLY_OFF, -1, 0, 1])
    (wedge,) = ax.collections
    corners = wedge.get_paths()[0].vertices
    far = corners[corners[:, 0].argmin()]
    assert far[0] / corners[:, 1].max() == pytest.approx(NEARLY_OFF)


def test_the_title_counts_the_channels_in_the_wedge(sick_run, healthy_run, four_runs):
    assert title(draw(healthy_run)) == "No channel stands in the dead region"
    assert title(draw(sick_run)) == "18 of 96 channels stand in the dead region"  # 12 dead, 6 nearly
    said = title(draw(four_runs))
    assert said == "In the dead region: none (12 of 96), layer_norm (3 of 96); no other run has any"


def test_what_is_not_finite_is_counted(run_of):
    ax = draw(run_of([np.nan, 0.0], [1.0, np.inf], [0.5, 0.5]))
    assert "× 2 not finite" in [text.get_text() for text in ax.texts]
    lost = draw(run_of([np.nan], [np.nan], [np.nan]))
    assert title(lost) == "No channel has a finite place on the map"
