from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import fisher_vector, fisher_vector_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step, unknown=0.0, channels=16.0, **shares):
    """Each layer with its shares of channels with several modes and with several components."""
    readings = []
    for layer, (multimodal, mixed) in shares.items():
        values = {"multimodal": multimodal, "mixed": mixed, "channels": channels, "unknown": unknown}
        readings += [Reading(name, value, layer=layer, n=64) for name, value in values.items()]
    return Measurement(step, "fisher_vector", readings=tuple(readings))


def draw(runs):
    return fisher_vector(runs, Figure().add_subplot())


def test_disks_are_shares_with_several_modes_and_diamonds_with_several_components(healthy_run):
    ax, data = draw(healthy_run), fisher_vector_data(healthy_run)
    assert set(data["step"]) == {300}
    for kind, marker in (("multimodal", "o"), ("mixed", "D")):
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), data.loc[data["name"] == kind, "value"])
        np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])


def test_the_title_names_the_layer_with_most_modes_of_the_last_step(write_measurements):
    run = write_measurements([measured(0, a=(1.0, 1.0)), measured(9, a=(0.125, 0.5), b=(0.5, 0.5))])
    assert title(draw(run)) == "b: 8 of 16 channels have several modes; 2 in the other layers"
    shown = {text.get_text(): text.get_position()[1] for text in draw(run).texts}
    assert shown == {"2 of 16": 0, "8 of 16": 1}
    alone = write_measurements([measured(0, a=(0.25, 1.0))])
    assert title(draw(alone)) == "a: 4 of 16 channels have several modes"
    none = write_measurements([measured(0, a=(0.0, 0.5), b=(0.0, 0.0))])
    assert title(draw(none)) == "None of 32 channels has several modes"
    both = title(draw({"x": none, "y": run}))
    assert both.replace("\N{NO-BREAK SPACE}", " ") == "Channels with several modes, x: 0 of 32; y: 10 of 32"


def test_channels_that_are_unknown_are_not_counted(write_measurements):
    run = write_measurements([measured(0, unknown=6.0, a=(0.5, 0.5))])
    assert title(draw(run)) == "a: 5 of 10 channels have several modes"
    assert fisher_vector_data(run)["channels"].tolist() == [10, 10]


def test_what_is_not_finite_is_counted_in_the_figure(write_measurements):
    ax = draw(write_measurements([measured(0, a=(np.nan, np.nan), b=(0.5, 0.5))]))
    assert "× 2 not finite" in [text.get_text() for text in ax.texts]
    lost = draw(write_measurements([measured(0, unknown=16.0, a=(np.nan, np.nan))]))
    assert title(lost) == "The channels' distributions are not finite in any layer"


@pytest.mark.parametrize("count", [2, 5])
def test_many_runs_are_named_as_far_as_there_is_room(write_measurements, count):
    runs = {f"run{i}": write_measurements([measured(0, a=(0.25, 0.5))]) for i in range(count)}
    assert title(draw(runs)).endswith("…") == (count > 4)
