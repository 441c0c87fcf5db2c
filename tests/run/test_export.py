from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from normlens.run.export import _variables, to_csv, to_jsonl, to_netcdf, to_parquet
from normlens.run.reading import Measurement, Reading
from normlens.run.table import COLUMNS

AWKWARD = np.array([0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308, 2**53 - 1, math.nan, math.inf, -math.inf])


@pytest.fixture
def run(write_measurements):
    rng = np.random.default_rng(0)
    readings = (
        Reading("awkward", AWKWARD, layer="block1.conv", dims=("unit",), error=0.1, n=7),
        Reading("single", rng.standard_normal(20).astype("f4"), dims=("unit",), units="nats"),
        Reading("many", np.exp(rng.uniform(-700, 700, 200)), dims=("unit",), error=math.inf),
        Reading("matrix", rng.standard_normal((2, 3)), dims=("row", "column")),
        Reading("flag", True),
    )
    user = Measurement(3, "user", mode="", readings=(Reading('test loss, "so\nfar"', 2 / 3),))
    return write_measurements([Measurement(step, "p", mode="eval", readings=readings) for step in (0, 9)] + [user])


def bits(numbers):
    return np.asarray(numbers, dtype=np.float64).tobytes()


def test_a_csv_read_back_has_the_same_table_to_the_last_bit(run, tmp_path):
    to_csv(run, tmp_path / "x.csv")
    table = run.to_pandas()
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["probe", *COLUMNS]
    for column in ("value", "error"):
        assert bits([float(row[column] or "nan") for row in rows]) == bits(table[column])
    for column in ("probe", "layer", "name", "units", "mode"):
        assert [row[column] for row in rows] == table[column].tolist()
    for column in ("step", "n", "unit"):
        assert [row[column] for row in rows] == ["" if cell is pd.NA else str(cell) for cell in table[column]]


def test_pandas_reads_a_csv_with_the_columns_and_types_that_were_written(run, tmp_path):
    to_csv(run, tmp_path / "x.csv")
    table = run.to_pandas()
    back = pd.read_csv(
        tmp_path / "x.csv", keep_default_na=False, na_values=dict.fromkeys(("value", "error", "unit"), "")
    )
    np.testing.assert_allclose(back["value"], table["value"], rtol=1e-15)  # its parser may be off by a last bit
    for column in ("probe", "step", "layer", "name", "units", "n", "mode"):
        assert back[column].tolist() == table[column].tolist()
    assert back["unit"].astype("Int64").equals(table["unit"])


def test_json_lines_read_back_are_the_readings_to_the_last_bit(run, tmp_path):
    to_jsonl(run, tmp_path / "x.jsonl")
    text = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.rstrip("\n").split("\n")]
    made = [(m, r) for m in run.with_readings() for r in m.readings]
    for line, (m, r) in zip(lines, made, strict=True):
        assert bits(np.asarray(line["value"], dtype=float)) == bits(r.array)
        assert bits(float(line["error"])) == bits(r.error)
        found = (line["probe"], line["step"], line["mode"], line["layer"], line["name"], line["units"], line["n"])
        assert found == (m.probe, m.step, m.mode, r.layer, r.name, r.units, r.n)
        assert tuple(line["dims"]) == r.dims


def test_hostile_names_survive_csv_and_json_lines(write_measurements, hostile_names, tmp_path):
    names = [*hostile_names.values(), "a\rb", "a\u2028b", "NA", "nan", "", ",", '"', "=cmd()"]
    run = write_measurements([
        Measurement(step, "p", readings=(Reading(name, 1.0, layer=name),)) for step, name in enumerate(names)
    ])  # fmt: skip
    kept = [name.replace("\ud800", r"\ud800") for name in names]
    to_csv(run, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as lines:
        assert [(row["layer"], row["name"]) for row in csv.DictReader(lines)] == [(name, name) for name in kept]
    to_jsonl(run, tmp_path / "x.jsonl")
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line)["layer"] for line in lines] == kept


def test_a_run_without_readings_is_a_table_with_its_columns_and_no_rows(write_measurements, tmp_path):
    run = write_measurements([Measurement(1, "p", "failed", "ValueError: no")])
    to_csv(run, tmp_path / "x.csv")
    assert next(csv.reader([(tmp_path / "x.csv").read_text()])) == ["probe", *COLUMNS]
    to_jsonl(run, tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_text() == ""


def test_a_probe_without_rows_does_not_change_the_types_of_the_others(write_measurements):
    matrix = Reading("h", np.ones((2, 2)), dims=("a", "b"))
    run = write_measurements([
        Measurement(1, "p", readings=(matrix,)), Measurement(1, "q", readings=(Reading("w", 0.5, n=3),))
    ])  # fmt: skip
    assert run.to_pandas()[["probe", "step", "n", "value"]].to_numpy().tolist() == [["q", 1, 3, 0.5]]
    assert [str(run.to_pandas().dtypes[name]) for name in ("step", "n")] == ["int64", "int64"]


def test_complex_numbers_survive_json_lines(write_measurements, tmp_path):
    run = write_measurements([Measurement(1, "p", readings=(Reading("w", np.array([1 / 3 - 2j]), dims=("unit",)),))])
    to_jsonl(run, tmp_path / "x.jsonl")
    assert [complex(z) for z in json.loads((tmp_path / "x.jsonl").read_text())["value"]] == [1 / 3 - 2j]


@pytest.mark.parametrize(
    ("export", "module", "what"),
    [(to_parquet, "pyarrow", "Parquet"), (to_netcdf, "xarray", "netCDF"), (to_netcdf, "h5netcdf", "netCDF")],
)
def test_a_missing_extra_is_named_with_what_to_install(run, tmp_path, monkeypatch, export, module, what):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else sys.modules["json"])
    with pytest.raises(ImportError, match=rf"{what} export needs {module}.*pip install 'normlens\[export\]'"):
        export(run, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_parquet_file_has_the_same_table(run, tmp_path):
    pytest.importorskip("pyarrow")
    to_parquet(run, tmp_path / "x.parquet")
    back = pd.read_parquet(tmp_path / "x.parquet")
    assert bits(back["value"]) == bits(run.to_pandas()["value"])
    assert back.drop(columns="value").to_csv() == run.to_pandas().drop(columns="value").to_csv()


def test_a_netcdf_file_has_the_same_arrays(run, tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    to_netcdf(run, tmp_path / "x.nc")
    with xarray.open_dataset(tmp_path / "x.nc", engine="h5netcdf") as back:
        assert bits(back["p_matrix"]) == bits(run.array("p", "matrix").values)
        assert bits(back["p_block1.conv_awkward"]) == bits(np.stack([AWKWARD, AWKWARD]))
        np.testing.assert_array_equal(back["p_matrix_step"], [0, 9])


def test_every_reading_becomes_a_variable_with_coordinates_of_its_own(run):
    variables = _variables(run)
    dims, values = variables["p_matrix"]
    assert dims == ["p_matrix_step", "p_matrix_row", "p_matrix_column"]
    np.testing.assert_array_equal(values, run.array("p", "matrix").values)
    assert {name: variables[name][0] for name in dims} == {name: [name] for name in dims}
    assert [len(variables[name][1]) for name in dims] == list(values.shape)


def test_what_cannot_be_stacked_becomes_a_variable_for_each_step(write_measurements):
    grids = {0: np.array([0.0, 1.0]), 5: np.array([0.0, 2.0])}
    run = write_measurements([
        Measurement(step, "p", readings=(Reading("f", x + 1, dims=("x",)), Reading("x", x, dims=("x",))))
        for step, x in grids.items()
    ])  # fmt: skip
    variables = _variables(run)
    for step, grid in grids.items():
        np.testing.assert_array_equal(variables[f"p_f_step{step}"][1], grid + 1)
        np.testing.assert_array_equal(variables[f"p_f_step{step}_x"][1], grid)
