from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from normlens.plot import rank_collapse, rank_collapse_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return rank_collapse(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step=0, kind="effective_rank_centered", **ranks):
    readings = []
    for layer, rank in ranks.items():
        readings += [Reading(kind, rank, layer=layer, n=16), Reading("width", 40.0, layer=layer)]
    return Measurement(step, "rank_collapse", readings=tuple(readings))


def test_disks_are_ranks_about_the_mean_and_diamonds_with_it_at_the_last_step(healthy_run):
    ax, data = draw(healthy_run), rank_collapse_data(healthy_run)
    assert set(data["step"]) == {300}
    for kind, marker in (("effective_rank_centered", "o"), ("effective_rank", "D")):
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), data.loc[data["name"] == kind, "value"])
        np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])


def test_the_strokes_are_the_largest_rank_that_samples_and_width_allow(write_measurements, healthy_run):
    assert (rank_collapse_data(healthy_run)["largest"] == 32).all()
    run = write_measurements([measured(a=2.0)])
    assert rank_collapse_data(run)["largest"].tolist() == [16]
    segments = [s for c in draw(run).collections if isinstance(c, LineCollection) for s in c.get_segments()]
    assert [s[0][0] for s in segments if s[0][1] != s[1][1]] == [16]


def test_one_is_on_the_axis_and_the_largest_rank_too(healthy_run):
    low, high = draw(healthy_run).get_xlim()
    assert low < 1
    assert high > 32


def test_the_title_names_the_narrowest_layer(healthy_run, four_runs, write_measurements):
    said = "Narrowest: block3.relu, where samples spread over 7.67 of 32 directions"
    assert title(draw(healthy_run)) == said
    assert title(draw(four_runs)).startswith("Narrowest: layer_norm, block3.relu, where samples spread over 2.11 of")
    run = write_measurements([measured(0, a=1.5), measured(5, a=8.0, b=4.0)])
    assert title(draw(run)) == "Narrowest: b, where samples spread over 4 of 16 directions"


@pytest.mark.parametrize(("value", "said"), [(0.0, "0 of 16 directions"), (np.nan, "not finite in any layer")])
def test_samples_that_are_all_the_same_spread_over_none(value, said, write_measurements):
    ax = draw(write_measurements([measured(a=value)]))
    assert title(ax).endswith(said)
    assert "× 1 not on the axis" in [text.get_text() for text in ax.texts]
