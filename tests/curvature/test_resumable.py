"""What was computed is not computed again: not after a kill, and never for another matrix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normlens.curvature.density import spectral_density
from normlens.curvature.hessian import hessian
from normlens.curvature.lanczos import eigsh
from normlens.curvature.operator import DenseOperator
from normlens.curvature.resumable import resumable
from normlens.risk import EmpiricalRisk


def matrix(n: int = 60, seed: int = 0) -> DenseOperator:
    values = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return DenseOperator(values + values.T)


class DiesAt(DenseOperator):
    """Kills its own process in the middle of a product, or raises."""

    def __init__(self, inner: DenseOperator, at: int, *, kill: bool = False) -> None:
        super().__init__(inner.dense())
        self.count, self.at, self.kill = 0, at, kill

    def matvec(self, v: Tensor) -> Tensor:
        self.count += 1
        if self.count == self.at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InterruptedError
        return super().matvec(v)


def both(operator: object) -> tuple[Tensor, Tensor]:
    """Top pairs and a density, as a user would ask for them in one script."""
    pairs = eigsh(operator, 3, tol=1e-8)
    density = spectral_density(operator, steps=10, probes=2, generator=torch.Generator().manual_seed(3))
    return pairs.values, density.ritz


@pytest.mark.parametrize("at", [1, 7, 40])
def test_an_interrupted_computation_goes_on_bit_for_bit_and_repeats_no_product(tmp_path: Path, at: int) -> None:
    expected = both(matrix())
    with pytest.raises(InterruptedError):
        both(resumable(DiesAt(matrix(), at), tmp_path / "p", key="a"))
    whole = DiesAt(matrix(), 10**9)
    both(whole)
    second = resumable(DiesAt(matrix(), 10**9), tmp_path / "p", key="a")
    for got, want in zip(both(second), expected, strict=True):
        assert torch.equal(got, want)
    assert (second.recalled, second.formed) == (at - 1, whole.count - at + 1)


def test_a_killed_process_loses_no_finished_product(tmp_path: Path) -> None:
    script = (
        "import sys; from curvature.test_resumable import *;"
        "both(resumable(DiesAt(matrix(), 31, kill=True), sys.argv[1], key='a'))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", script, tmp_path / "p"], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    second = resumable(DiesAt(matrix(), 10**9), tmp_path / "p", key="a")
    expected = both(matrix())
    for got, want in zip(both(second), expected, strict=True):
        assert torch.equal(got, want)
    assert second.recalled == 30


@pytest.mark.parametrize("cut", [1, 100, 60 * 8, 60 * 8 + 35])
def test_a_record_that_was_cut_short_is_formed_again(tmp_path: Path, cut: int) -> None:
    path, v = tmp_path / "p", torch.eye(60, dtype=torch.float64)
    first = resumable(matrix(), path, key="a")
    expected = [first @ v[j] for j in range(3)]
    os.truncate(path, path.stat().st_size - cut)
    again = resumable(matrix(), path, key="a")
    assert all(torch.equal(again @ v[j], expected[j]) for j in range(3))
    assert (again.recalled, again.formed) == (2, 1)
    third = resumable(matrix(), path, key="a")
    assert all(torch.equal(third @ v[j], expected[j]) for j in range(3))
    assert third.recalled == 3


def test_a_flipped_byte_in_a_product_is_never_used(tmp_path: Path) -> None:
    path, v = tmp_path / "p", torch.eye(60, dtype=torch.float64)
    expected = [resumable(matrix(), path, key="a") @ v[j] for j in range(2)]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    again = resumable(matrix(), path, key="a")
    assert all(torch.equal(again @ v[j], expected[j]) for j in range(2))
    assert again.formed == 1


def risk(scale: float = 1.0, mode: str = "train") -> EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * scale
    return EmpiricalRisk(model, nn.functional.cross_entropy, (x, torch.arange(8) % 2), mode=mode)


def test_a_file_of_the_same_risk_is_taken_up_and_gives_float32_products_bit_for_bit(tmp_path: Path) -> None:
    v = torch.randn(34, generator=torch.Generator().manual_seed(1))
    first = resumable(hessian(risk()), tmp_path / "p", key=risk())
    expected = first @ v
    again = resumable(hessian(risk()), tmp_path / "p", key=risk())
    assert torch.equal(again @ v, expected)
    assert again.recalled == 1


@pytest.mark.parametrize("other", [risk(2.0), risk(mode="eval")], ids=["data", "mode"])
def test_a_file_of_another_risk_is_refused(tmp_path: Path, other: EmpiricalRisk) -> None:
    resumable(hessian(risk()), tmp_path / "p", key=risk())
    with pytest.raises(ValueError, match=r"must hold products of this matrix.*name another file, or remove it"):
        resumable(hessian(other), tmp_path / "p", key=other)


def test_a_file_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"my thesis")
    with pytest.raises(ValueError, match="it begins with"):
        resumable(matrix(), tmp_path / "p", key="a")
    assert (tmp_path / "p").read_bytes() == b"my thesis"
