from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import mutual_information, mutual_information_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def drawn(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def measured(step, keep=0.9, null=0.03, **layers):
    """Each layer with pairs before and behind the gates, of channels, and of neighbors where there are more."""
    readings = []
    for layer, pairs in layers.items():
        readings += [Reading("keep_prob", keep, layer=layer), Reading("null", null, layer=layer, n=24)]
        for name, values in zip(("before", "after", "within_before", "within_after"), pairs, strict=False):
            readings.append(Reading(name, np.array(values), layer=layer, units="nats", dims=("pair",), n=256))
    return Measurement(step, "mutual_information", readings=tuple(readings))


def test_points_are_pairs_of_the_last_step_behind_against_before(write_measurements):
    run = write_measurements(
        [
            measured(0, a=([9.0], [9.0])),
            measured(30, a=([0.1, 0.4], [0.08, 0.3], [0.5], [0.6]), b=([0.2], [0.1])),
        ]
    )
    ax = mutual_information(run, Figure().add_subplot())
    (disks,), (diamonds,) = drawn(ax, "o"), drawn(ax, "D")
    assert disks.get_xdata().tolist() == [0.1, 0.4, 0.2]
    assert disks.get_ydata().tolist() == [0.08, 0.3, 0.1]
    assert (diamonds.get_xdata().tolist(), diamonds.get_ydata().tolist()) == ([0.5], [0.6])
    data = mutual_information_data(run)
    assert data["kind"].tolist() == ["across"] * 3 + ["within"]
    assert data["pair"].tolist() == [0, 1, 0, 0]
    assert set(data["keep"]) == {0.9}


def test_lines_are_keep_squared_once_for_each_keep_and_the_level_of_no_dependence(write_measurements):
    run = write_measurements([measured(0, a=([0.1, 0.4], [0.08, 0.3]))])
    other = write_measurements([measured(0, keep=0.5, null=0.05, a=([0.1, 0.8], [0.08, 0.3]))])
    ax = mutual_information({"x": run, "y": other, "z": run}, Figure().add_subplot())
    laws = [line for line in drawn(ax, "None") if line.get_linestyle() == "-"]
    assert [line.get_xdata()[1] for line in laws] == [0.8, 0.8]
    np.testing.assert_allclose([line.get_ydata()[1] for line in laws], [0.25 * 0.8, 0.81 * 0.8])
    (level,) = [line for line in drawn(ax, "None") if line.get_linestyle() == ":"]
    assert level.get_xdata()[0] == 0.05  # the largest of all layers and runs
    assert {text.get_text().strip() for text in ax.texts} == {"keep² = 0.25", "keep² = 0.81", "no dependence"}


def test_the_title_gives_the_part_that_is_left_of_the_sum(write_measurements):
    run = write_measurements([measured(0, a=([0.1, 0.3], [0.08, 0.24], [1.0], [9.0]))])
    said = "Of what channels tell of each other the gates leave 80 % (keep² = 0.81)"
    assert title(mutual_information(run, Figure().add_subplot())) == said
    less = write_measurements([measured(0, a=([0.1, 0.3], [0.02, 0.18]))])
    both = mutual_information({"x": run, "y": less}, Figure().add_subplot())
    assert title(both) == "Of what channels tell of each other the gates leave 50 % in y, 80 % in x"


def test_what_is_not_finite_is_counted(write_measurements):
    run = write_measurements([measured(0, null=math.nan, a=([0.1, math.nan], [0.08, 0.2]))])
    ax = mutual_information(run, Figure().add_subplot())
    assert "× 1 not finite" in [text.get_text() for text in ax.texts]
    lost = write_measurements([measured(0, null=math.nan, a=([math.nan], [math.nan]))])
    assert title(mutual_information(lost, Figure().add_subplot())).startswith("Nothing is known of the information")
