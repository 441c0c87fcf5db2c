from __future__ import annotations

import sys

from normlens.cli.runs import find_runs
from normlens.cli.tables import print_verdicts


def test_without_a_terminal_there_is_no_color_code(two_runs, capsys):
    print_verdicts(find_runs([str(two_runs)]))
    text = capsys.readouterr().out
    assert "begun first" in text
    assert "\x1b[" not in text


def test_on_a_terminal_a_finding_keeps_its_word_beside_its_color(two_runs, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_verdicts(find_runs([str(two_runs)]))
    text = capsys.readouterr().out
    assert "\x1b[" not in text or "[look]" in text or "[note]" in text or "[sick]" in text
