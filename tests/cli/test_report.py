from __future__ import annotations

from pathlib import Path

from normlens.cli.main import main


def test_report_writes_one_page_beside_the_runs_and_prints_its_path(two_runs, capsys):
    assert main(["report", str(two_runs)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == two_runs / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "begun first" in text
    assert "begun second" in text


def test_report_writes_where_it_is_told(two_runs, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(two_runs / "a"), "--out", str(out)]) == 0
    assert out.is_file()
