from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from normlens.plot import information_ratio, information_ratio_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def drawn(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def measured(step, error=0.02, **ratios):
    """Each layer with a ratio and what is predicted of it, or with four: of neighbors, too."""
    readings = []
    for layer, (ratio, predicted, *within) in ratios.items():
        for kind, (value, said) in (("", (ratio, predicted)), *([("within_", within)] if within else [])):
            readings.append(Reading(f"{kind}ratio", value, layer=layer, error=error, n=256))
            readings.append(Reading(f"{kind}ratio_predicted", said, layer=layer))
    return Measurement(step, "mutual_information", readings=tuple(readings))


def test_disks_are_channels_diamonds_neighbors_and_strokes_what_theory_says_at_the_last_step(write_measurements):
    run = write_measurements([measured(0, a=(9.0, 9.0)), measured(30, a=(0.8, 0.81), b=(0.7, 0.81, 2.0, 2.1))])
    ax = information_ratio(run, Figure().add_subplot())
    assert set(information_ratio_data(run)["step"]) == {30}
    (disks,), (diamonds,), strokes = drawn(ax, "o"), drawn(ax, "D"), drawn(ax, "|")
    assert disks.get_xdata().tolist() == [0.8, 0.7]
    assert diamonds.get_xdata().tolist() == [2.0]
    assert [stroke.get_xdata().tolist() for stroke in strokes] == [[0.81, 0.81], [2.1]]
    assert disks.get_ydata()[1] < diamonds.get_ydata()[0] < 1.5  # within the row of its layer
    bars = [segment[:, 0] for artist in ax.collections for segment in artist.get_segments()]
    np.testing.assert_allclose(bars[0], [0.8 - 1.96 * 0.02, 0.8 + 1.96 * 0.02])


def test_the_title_counts_intervals_and_names_the_layer_furthest_from_theory(write_measurements):
    fits = write_measurements([measured(0, a=(0.8, 0.81), b=(0.78, 0.81))])
    said = "2 of 2 ratios hold the theory's value in their interval"
    assert title(information_ratio(fits, Figure().add_subplot())) == said
    below = write_measurements([measured(0, a=(0.8, 0.81), b=(0.5, 0.81), c=(0.9, 0.81))])
    words = "1 of 3 ratios hold the theory's value in their interval; {}b is furthest below it"
    assert title(information_ratio(below, Figure().add_subplot())) == words.format("")
    above = write_measurements([measured(0, a=(2.0, 0.81))])
    both = information_ratio({"x": fits, "y": above}, Figure().add_subplot())
    assert title(both).endswith("; y, a is furthest above it")


def test_ratios_of_shared_gates_make_the_axis_logarithmic(write_measurements):
    plain = write_measurements([measured(0, a=(0.8, 0.81))])
    assert information_ratio(plain, Figure().add_subplot()).get_xscale() == "linear"
    shared = write_measurements([measured(0, a=(0.8, 0.81, 20.0, 21.0), b=(-0.1, 0.81))])
    ax = information_ratio(shared, Figure().add_subplot())
    assert ax.get_xscale() == "log"
    assert ax.get_xlim()[1] > 21
    assert "× 1 not known" in [text.get_text() for text in ax.texts]  # what has no logarithm


def test_what_is_not_known_is_counted(write_measurements):
    run = write_measurements([measured(0, a=(math.nan, 0.81), b=(0.8, 0.81))])
    ax = information_ratio(run, Figure().add_subplot())
    assert "× 1 not known" in [text.get_text() for text in ax.texts]
    nothing = write_measurements([measured(0, a=(math.nan, 0.81))])
    assert title(information_ratio(nothing, Figure().add_subplot())).startswith("Too little information")


def test_each_run_has_places_and_a_color_of_its_own(write_measurements):
    runs = {name: write_measurements([measured(0, a=(0.8, 0.81))]) for name in "xyz"}
    ax = information_ratio(runs, Figure().add_subplot())
    disks = drawn(ax, "o")
    assert len({to_hex(line.get_color()) for line in disks}) == 3
    heights = [line.get_ydata()[0] for line in disks]
    assert heights == sorted(heights)
    assert heights[0] > -0.5
    assert heights[-1] < 0.5
    assert heights == pytest.approx([0.7 * ((2 * i + 0.5) / 6 - 0.5) for i in range(3)])
