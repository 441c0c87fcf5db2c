from __future__ import annotations

import json

import pandas as pd

from normlens.cli.main import main
from normlens.run.store import open_run


def test_csv_and_jsonl_hold_every_number_of_the_run(two_runs, capsys):
    table = open_run(two_runs / "a").to_pandas()
    for suffix in ("csv", "jsonl"):
        assert main(["export", str(two_runs / "a"), "--out", str(two_runs / "out" / f"a.{suffix}")]) == 0
    assert pd.read_csv(two_runs / "out" / "a.csv")["value"].tolist() == table["value"].tolist()
    lines = (two_runs / "out" / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == sum(len(m.readings) for m in open_run(two_runs / "a").with_readings())
    assert json.loads(lines[0])["name"] == "loss"


def test_an_unknown_format_and_several_runs_are_usage_errors(two_runs, capsys):
    assert main(["export", str(two_runs / "a"), "--out", "x.pickle"]) == 2
    assert ".csv, .jsonl, .parquet, .nc" in capsys.readouterr().err
    assert main(["export", str(two_runs), "--out", "x.csv"]) == 2
    assert "takes one run" in capsys.readouterr().err
