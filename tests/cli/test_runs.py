from __future__ import annotations

import shutil

import pytest

from normlens.cli.runs import find_runs
from normlens.run.errors import RunFormatError, RunNotFoundError


def test_a_folder_gives_its_runs_in_the_order_they_were_begun(two_runs):
    assert list(find_runs([str(two_runs)])) == ["begun first", "begun second"]


def test_a_file_may_be_named_without_its_suffix(two_runs):
    assert list(find_runs([str(two_runs / "a"), str(two_runs / "b.sqlite")])) == ["begun second", "begun first"]


def test_runs_of_one_name_are_told_apart_by_their_files(two_runs):
    shutil.copy(two_runs / "a.sqlite", two_runs / "c.sqlite")
    labels = list(find_runs([str(two_runs)]))
    assert len(labels) == 3
    assert sum(str(two_runs / "c.sqlite") in label for label in labels) == 1


def test_a_folder_without_runs_and_a_missing_file_say_so(tmp_path):
    with pytest.raises(RunNotFoundError, match="holds no run"):
        find_runs([str(tmp_path)])
    with pytest.raises(RunNotFoundError, match="there is no run at"):
        find_runs([str(tmp_path / "missing")])


def test_a_file_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "x.sqlite").write_text("hello " * 1000)
    with pytest.raises(RunFormatError, match="not a normlens run"):
        find_runs([str(tmp_path / "x")])
