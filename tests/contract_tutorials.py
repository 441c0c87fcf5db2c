"""Every tutorial runs, asserts its own claim, and lies beside an executed notebook of the same text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.py"))


def test_there_are_tutorials():
    assert TUTORIALS


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_it_runs_in_its_fast_mode_with_warnings_as_errors(tutorial, tmp_path):
    environment = {**os.environ, "NORMLENS_FAST": "1", "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", str(tutorial)]
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_it_asserts_something(tutorial):
    assert "\nassert " in tutorial.read_text(encoding="utf-8")


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_its_notebook_has_the_same_text_and_was_executed_to_the_end(tutorial):
    notebook = json.loads(tutorial.with_suffix(".ipynb").read_text(encoding="utf-8"))
    paired = jupytext.read(tutorial)
    assert ["".join(cell["source"]) for cell in notebook["cells"]] == [cell["source"] for cell in paired["cells"]]
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
