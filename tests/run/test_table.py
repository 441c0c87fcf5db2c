from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from normlens.run.reading import Measurement, Reading
from normlens.run.table import COLUMNS, tidy


def plain_rows(measurements):
    """The oracle: one row for every number, by loops alone."""
    rows = []
    for m in measurements:
        for r in m.readings:
            if r.array.ndim > 1:
                continue
            for index, number in enumerate(r.array.reshape(-1).tolist()):
                unit = index if r.array.ndim else None
                rows.append((m.step, r.layer, unit, r.name, number, r.error, r.units or "", r.n, m.mode))
    return rows


def test_every_number_has_a_row_with_all_that_belongs_to_it():
    rng = np.random.default_rng(0)
    measurements = [
        Measurement(step, "p", mode=mode, readings=(
            Reading("loss", float(rng.standard_normal()), units="nats", error=0.1, n=64),
            Reading("offset", rng.standard_normal(3 + step), layer="a", dims=("channel",), error=0.5),
            Reading("hessian", rng.standard_normal((2, 2)), dims=("row", "column")),
            Reading("empty", np.ones(0), dims=("channel",)),
        ))
        for step, mode in enumerate(("train", "eval", "mixed"))
    ]  # fmt: skip
    table = tidy(measurements)
    assert list(table.columns) == COLUMNS
    found = [tuple(None if value is pd.NA else value for value in row) for row in table.itertuples(index=False)]
    expected = plain_rows(measurements)
    assert len(found) == len(expected) == 15
    for row, oracle in zip(found, expected, strict=True):
        np.testing.assert_equal(row, oracle)


@pytest.mark.parametrize("readings", [(), (Reading("h", np.ones((2, 2)), dims=("a", "b")),), (Reading("w", 1.0),)])
def test_the_types_of_the_columns_do_not_depend_on_how_much_there_is(readings):
    types = tidy([Measurement(0, "p", readings=readings)]).dtypes
    assert (types["step"], types["n"], types["error"], types["value"], str(types["unit"])) == (
        np.int64, np.int64, np.float64, np.float64, "Int64",
    )  # fmt: skip


def test_single_precision_is_shown_as_the_double_that_it_equals():
    single = np.array([0.1, 1 / 3, math.inf, math.nan], dtype=np.float32)
    value = tidy([Measurement(0, "p", readings=(Reading("w", single, dims=("unit",)),))])["value"]
    assert value.dtype == np.float64
    np.testing.assert_array_equal(value, single)
    assert repr(float(value[0])) == "0.10000000149011612"
