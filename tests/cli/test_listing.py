from __future__ import annotations

import json

import pytest

from normlens.catalog import names
from normlens.cli.main import main

KINDS = {"layers": "nn", "probes": "probes", "models": "models", "data": "data", "figures": "plot"}


@pytest.mark.parametrize(("kind", "package"), KINDS.items())
def test_every_module_is_listed_with_what_it_is(kind, package, capsys):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names(f"normlens.{package}")
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)


def test_runs_of_a_folder_are_listed_with_their_files(two_runs, capsys):
    assert main(["list", "runs", str(two_runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "begun first": str(two_runs / "b.sqlite"),
        "begun second": str(two_runs / "a.sqlite"),
    }
