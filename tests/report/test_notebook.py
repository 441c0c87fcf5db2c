from __future__ import annotations

import pytest

from normlens.report.notebook import Run, open_run
from normlens.run import store
from normlens.run.errors import RunNotFoundError


def test_open_run_gives_a_run_that_shows_itself(sick_run):
    run = open_run(sick_run.path)
    assert isinstance(run, Run)
    assert isinstance(run, store.Run)
    shown = run._repr_html_()
    assert "✖ sick" in shown
    assert "9 of 32 channels are dead" in shown
    assert "<table>" in shown
    assert 'aria-label="The loss is not finite from step 180' in shown


@pytest.mark.slow
def test_hostile_names_are_escaped(hostile_runs):
    for run in list(hostile_runs.values())[:2]:
        shown = open_run(run.path)._repr_html_()
        assert "<script" not in shown
        assert "\x00" not in shown


def test_a_run_without_figures_shows_its_verdict(empty_run):
    shown = open_run(empty_run.path)._repr_html_()
    assert "▲ look here" in shown
    assert "<svg" not in shown


def test_a_run_that_has_gone_says_so_instead_of_raising(make_run):
    run = open_run(make_run().path)
    run.path.unlink()
    assert "✖" in run._repr_html_()


def test_a_run_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RunNotFoundError, match="there is no run at"):
        open_run(tmp_path / "nothing")
