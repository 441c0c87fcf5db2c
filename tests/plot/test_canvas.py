from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot.canvas import (
    DIRECT,
    curve,
    figure_of,
    figure_size,
    growing,
    layer_axis,
    legend,
    log_axis,
    name_runs,
    note,
    settle_note,
    stack,
)
from normlens.plot.style import dress


@pytest.fixture
def ax():
    return Figure(figsize=(6.4, 4)).add_subplot()


def test_what_is_not_finite_leaves_a_gap_and_a_cross_at_the_edge(ax):
    y = np.array([1.0, np.nan, np.inf, -np.inf, 2.0])
    line = curve(ax, np.arange(5.0), y, color="C0")
    np.testing.assert_array_equal(line.get_ydata(), [1, np.nan, np.nan, np.nan, 2])
    crosses = ax.lines[1]
    np.testing.assert_array_equal(crosses.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(crosses.get_ydata() < 0.5, [False, False, True])
    assert [text.get_text() for text in ax.texts] == ["× not finite"]


def test_the_band_is_one_recorded_error_to_each_side(ax):
    curve(ax, np.arange(2.0), np.array([1.0, 2.0]), error=np.array([0.1, np.nan]), color="C0")
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.9)
    assert heights.max() == pytest.approx(2.0)  # an unknown error draws no width


def test_a_single_point_is_visible(ax):
    assert curve(ax, np.array([3.0]), np.array([1.0]), color="C0").get_marker() == "o"


def test_labels_of_lines_that_end_together_do_not_overlap(ax):
    lines = {f"run {i}": curve(ax, np.arange(2.0), np.array([i, 1.0]), color="C0") for i in range(4)}
    name_runs(ax, lines)
    labels = [text for text in ax.texts if text.get_label() == DIRECT]
    heights = sorted(text.get_position()[1] for text in labels)
    assert [text.get_text() for text in labels] == sorted(lines)
    assert np.diff(heights).min() * ax.get_window_extent().height >= 0.29 * ax.figure.dpi
    assert heights[0] >= 0
    assert heights[-1] <= 1


def test_more_than_four_lines_get_a_legend_and_a_single_one_no_name(ax):
    lines = {f"run {i}": curve(ax, np.arange(2.0), np.array([i, 1.0]), color="C0") for i in range(5)}
    name_runs(ax, {"only": lines["run 0"]})
    assert ax.get_legend() is None
    name_runs(ax, lines)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(lines)
    assert not ax.texts


def test_layers_go_down_the_axis_and_every_one_of_sixty_fits_a_figure_of_its_size():
    layers = [f"layer{i}" for i in range(60)]
    ax = Figure(figsize=figure_size(60)).add_subplot()
    layer_axis(ax, layers)
    assert [text.get_text() for text in ax.get_yticklabels()] == layers
    assert ax.get_ylim() == (59.5, -0.5)


def test_where_there_is_no_room_layers_are_left_out_evenly(ax):
    layer_axis(ax, [f"layer{i}" for i in range(100)])
    rows = [int(text.get_text()[5:]) for text in ax.get_yticklabels()]
    assert rows[0] == 0
    assert len(rows) * 9 <= ax.get_window_extent().height * 72 / ax.figure.dpi
    assert len(set(np.diff(rows))) == 1


def test_a_log_axis_of_less_than_two_decades_has_plain_numbers(ax):
    ax.plot([0, 1], [0.3, 3.0])
    log_axis(ax)
    ax.figure.draw_without_rendering()
    shown = [t.get_text() for t, v in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True) if 0.3 <= v <= 3]
    assert shown == ["0.5", "1", "2"]


def test_stacked_panels_share_their_steps_and_fill_the_axes(ax):
    top, bottom = stack(ax, (3, 2))
    bottom.set_xlim(3, 7)
    assert top.get_xlim() == (3, 7)
    assert stack(ax, (1,)) == [ax]


def test_axes_that_were_removed_are_refused(ax):
    ax.remove()
    with pytest.raises(ValueError, match="belong to no figure"):
        figure_of(ax)


def top_of_note(ax):
    ax.figure.draw_without_rendering()
    (text,) = [text for text in ax.texts if text.get_text().startswith("not shown")]
    return text.get_window_extent().y1


def test_a_note_stands_below_legend_and_label_and_moves_with_them(ax):
    dress(ax)
    ax.set_xlabel("steps")
    legend(ax, {"a": "red", "b": "blue"})
    note(ax, ["run"], what="loss")
    beside_the_legend = top_of_note(ax)
    assert beside_the_legend < ax.get_legend().get_window_extent().y1
    ax.get_legend().remove()
    settle_note(ax, 84)
    assert top_of_note(ax) > beside_the_legend
    ax.set_xlabel("steps of the\noptimizer and\nmore")
    settle_note(ax, 84)
    assert top_of_note(ax) <= ax.xaxis.get_tightbbox().y0


def test_a_note_of_long_names_is_broken_into_lines_within_the_figure(ax):
    note(ax, [f"{'a_long_name_of_a_run'}_{number}" for number in range(6)], what="statistics of batches")
    ax.figure.draw_without_rendering()
    (text,) = [text for text in ax.texts if text.get_text().startswith("not shown")]
    assert text.get_text().count("\n") == 1
    assert text.get_text().endswith(" and 2 more")
    assert text.get_window_extent().x1 <= ax.figure.bbox.x1


@pytest.mark.parametrize("ours", [True, False])
def test_a_figure_of_ours_grows_for_a_long_legend_and_nobody_else_s_does(ax, ours):
    growing(ax.figure, ours)
    legend(ax, {f"a run with quite a long name, seed {number}": "red" for number in range(12)})
    assert ax.figure.get_size_inches().tolist() == pytest.approx([6.4, 4 + (10 * 15 / 72 if ours else 0)])
