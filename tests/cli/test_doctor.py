from __future__ import annotations

from normlens.cli import doctor
from normlens.cli.main import main


def test_it_reports_every_check_and_passes_here(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for words in ("ok        torch: ", "ok        store: ", "ok        second derivatives: right", "optional  pyarrow"):
        assert words in text


def test_a_check_that_fails_is_named_and_decides_the_exit_code(monkeypatch, capsys):
    def broken() -> str:
        raise OSError("disk is gone")

    monkeypatch.setattr(doctor, "_check_store", broken)
    assert main(["doctor"]) == 1
    assert "FAILED    store: OSError: disk is gone" in capsys.readouterr().out
