from __future__ import annotations

import math

import pytest

from normlens.report.summary import summary
from normlens.run.reading import Measurement, Reading


def test_a_row_holds_the_records_of_its_run(four_runs):
    row = summary(four_runs).set_index("name").loc["none"]
    assert row["verdict"] == "sick"
    assert (row["norm"], row["optimizer"]) == ("none", "SGD(lr=0.05, momentum=0.9)")
    assert row["dead channels"] == 12
    losses = four_runs["none"].frame("training_curve")
    assert row["final loss"] == losses.loc[losses["name"] == "loss", "value"].iloc[-1]
    assert (row["time (s)"], row["overhead (%)"]) == (pytest.approx(30), pytest.approx(6))
    assert row["of budget (%)"] == pytest.approx(60)  # 6 % of 10 %


def test_columns_that_no_run_has_are_left_out(write_measurements):
    run = write_measurements([Measurement(0, "training_curve", readings=(Reading("loss", 1.5),))])
    assert list(summary({"a": run}).columns) == ["name", "verdict", "final loss"]


def test_a_loss_of_nan_is_a_result_and_an_absent_one_is_none(sick_run, empty_run):
    table = summary({"sick": sick_run, "empty": empty_run}).set_index("name")
    assert math.isnan(table.loc["sick", "final loss"])
    assert table.loc["empty", "final loss"] is None


@pytest.mark.parametrize("config", [None, [], "text", {"norm": {"deep": 1}, "optimizer": None}])
def test_a_header_of_any_shape_is_no_error(write_measurements, config):
    run = write_measurements([], {"config": config, "seed": [1], "budget": "much", "layers": 3, "name": 7})
    assert "norm" not in summary({"a": run}).columns


def test_no_runs_make_an_empty_table():
    assert summary({}).empty


def test_the_last_curvature_is_in_the_table_and_an_older_condition_number_does_not_stand_in_for_a_bound(
    make_run, write_measurements
):
    table = summary({"bounded": make_run(sharpness=44.0)})  # its first measurements are exact, its last ones bounds
    assert table.loc[0, "λ_max"] == 44
    assert "κ*" not in table.columns
    exact = write_measurements([Measurement(0, "condition_number", readings=(Reading("kappa", 7.0),))])
    assert summary({"exact": exact}).loc[0, "κ*"] == 7
