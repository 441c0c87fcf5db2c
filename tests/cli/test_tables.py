from __future__ import annotations

import sys

import pytest

from normlens.cli import tables
from normlens.cli.runs import find_runs
from normlens.cli.tables import print_verdicts


def test_without_a_terminal_there_is_no_color_code(two_runs, capsys):
    print_verdicts(find_runs([str(two_runs)]))
    text = capsys.readouterr().out
    assert "begun first" in text
    assert "\x1b[" not in text


@pytest.mark.parametrize(("severity", "color"), [("sick", 31), ("look", 33), ("note", 36)])
def test_on_a_terminal_a_severity_keeps_its_word_within_its_color(severity, color, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert tables._mark(severity) == f"\x1b[{color}m[{severity}]\x1b[0m"
