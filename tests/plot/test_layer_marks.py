from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from normlens.plot.collect import Gathered
from normlens.plot.layer_marks import log_marks, ticks


def gathered(rows):
    table = pd.DataFrame(rows, columns=["run", "layer", "name", "value", "error"])
    names = list(dict.fromkeys(table["run"]))
    return Gathered(table, dict.fromkeys(names), (), {name: f"C{place}" for place, name in enumerate(names)})


def segments(ax):
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    return np.array([segment for collection in lines for segment in collection.get_segments()])


def test_runs_stand_beside_each_other_in_a_layer_s_row_the_first_kind_filled():
    ax = Figure().add_subplot()
    log_marks(ax, gathered([("x", "b", "p", 1.0, 0.1), ("x", "b", "q", 2.0, 0.1), ("y", "a", "p", 4.0, 0.1)]),
              ["a", "b"], {"p": "o", "q": "D"})  # fmt: skip
    first, second, other, empty = ax.lines
    assert (first.get_xdata(), second.get_xdata(), other.get_xdata()) == ([1.0], [2.0], [4.0])
    assert not len(empty.get_xdata())
    assert first.get_ydata() == second.get_ydata() == pytest.approx([1 - 0.15])
    assert other.get_ydata() == pytest.approx([0.15])
    assert (first.get_markerfacecolor(), second.get_markerfacecolor()) == ("C0", "none")


def test_errors_are_strokes_of_one_on_either_side_that_stay_on_the_axis():
    ax = Figure().add_subplot()
    log_marks(ax, gathered([("x", "a", "p", 2.0, 0.5), ("x", "b", "p", 2.0, 5.0), ("x", "c", "p", 2.0, np.nan)]),
              ["a", "b", "c"], {"p": "o"})  # fmt: skip
    assert segments(ax)[:, :, 0].tolist() == [[1.5, 2.5], [0.2, 7.0], [2.0, 2.0]]


def test_what_has_no_logarithm_is_counted_and_the_rest_within_the_limits():
    ax = Figure().add_subplot()
    rows = [("x", "a", "p", value, np.nan) for value in (0.0, np.nan, 3.0, 30.0)]
    log_marks(ax, gathered(rows), ["a"], {"p": "o"})
    assert [text.get_text() for text in ax.texts] == ["× 2 not on the axis"]
    assert ax.get_xlim() == pytest.approx((2.0, 45.0))
    empty = Figure().add_subplot()
    log_marks(empty, gathered([("x", "a", "p", np.nan, np.nan)]), ["a"], {"p": "o"})
    assert empty.get_xlim()[0] > 0


def test_ticks_stand_in_the_rows_of_their_layers():
    ax = Figure().add_subplot()
    ticks(ax, ["a", "b", "c"], {"a": 2.0, "b": np.nan})
    np.testing.assert_allclose(segments(ax), [[[2, -0.4], [2, 0.4]]])
    ticks(ax, ["c"], {})
    assert len(segments(ax)) == 1
