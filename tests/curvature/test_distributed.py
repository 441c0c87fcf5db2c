"""The engine for more than one machine is torch.distributed: two gloo processes give the numbers of one."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.distributed_eigenvalues import eigenvalues

PROGRAM = Path(__file__).parent.parent / "support" / "distributed_eigenvalues.py"


@pytest.mark.slow
def test_two_processes_with_unequal_shards_give_the_eigenvalues_of_one():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = ast.literal_eval(result.stdout.strip().splitlines()[-1])
    assert found == pytest.approx(eigenvalues(0, 1, None), rel=1e-6)
