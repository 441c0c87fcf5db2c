from __future__ import annotations

import numpy as np
import pandas as pd

from normlens.report.tables import LIMIT, tabulate


def test_cells_say_what_is_absent_unknown_or_not_a_number():
    frame = pd.DataFrame({
        "layer": ["a", "b"], "value": [1.23456, np.nan], "error": [0.1, np.nan], "test accuracy": [0.5, np.nan],
        "unit": pd.array([1, None], dtype="Int64"), "flag": [True, False], "lost": [None, -2.0],
    })  # fmt: skip
    first, second = (row.cells for row in tabulate(frame).rows)
    assert first == ("a", "1.235", "0.1", "50.0 %", "1", "yes", "NaN")
    assert second == ("b", "NaN", "–", "NaN", "–", "no", "−2")


def test_a_long_table_is_cut_and_knows_it():
    table = tabulate(pd.DataFrame({"layer": ["a"] * (LIMIT + 1)}))
    assert (len(table.rows), table.total, table.cut) == (LIMIT, LIMIT + 1, True)
    assert not tabulate(pd.DataFrame({"layer": ["a"]})).cut


def test_the_filter_sees_layers_and_leaves_other_tables_alone():
    assert [row.layer for row in tabulate(pd.DataFrame({"layer": ["a"], "x": [1]})).rows] == ["a"]
    assert [row.layer for row in tabulate(pd.DataFrame({"x": [1]})).rows] == [None]
    assert tabulate(pd.DataFrame()).rows == ()
