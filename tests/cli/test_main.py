from __future__ import annotations

import subprocess
import sys

import pytest

from normlens.cli import errors, listing, show
from normlens.cli.main import main
from normlens.run.errors import RunCorruptError, RunExistsError, RunNotFoundError


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_help_imports_neither_torch_nor_numpy():
    code = "from normlens.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not {"torch", "numpy", "pandas", "matplotlib"} & imported_by(code)


def test_help_names_every_command_and_exit_code(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("run", "report", "show", "export", "list", "doctor", "3 run not found", "130"):
        assert word in " ".join(text.split())


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (errors.UsageError("no"), 2, "usage: no"),
        (RunExistsError("there"), 1, "a run is in the way: there"),
        (RunNotFoundError("gone"), 3, "no readable run: gone"),
        (RunCorruptError("bent"), 3, "no readable run: bent"),
        (errors.UnsupportedError("cannot"), 4, "unsupported: cannot"),
        (ZeroDivisionError("x / 0"), 1, "ZeroDivisionError: x / 0"),
    ],
)
def test_what_a_command_raises_becomes_one_line_and_an_exit_code(raised, code, words, monkeypatch, capsys):
    def fail(options):
        raise raised

    monkeypatch.setattr(show, "execute", fail)
    assert main(["show", "x"]) == code
    assert capsys.readouterr().err == f"normlens: {words}\n"


def test_with_debug_the_traceback_is_kept(monkeypatch):
    def fail(options):
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(listing, "execute", fail)
    monkeypatch.setenv("NORMLENS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        main(["list", "layers"])


def test_no_command_and_an_unknown_one_are_usage_errors(capsys):
    for arguments in ([], ["paint"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
