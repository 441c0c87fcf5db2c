"""A program for torchrun: the eigenvalues of a Hessian whose data lie on several ranks; rank 0 prints them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import normlens as nl
from support.networks import batch


def eigenvalues(rank: int, ranks: int, group: dist.ProcessGroup | None) -> list[float]:
    """Return the top three eigenvalues of the Hessian and of the Gauss-Newton matrix; shards of unequal size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double().eval()
    x, y = batch(50)
    cut = slice(0, 50) if ranks == 1 else slice(0, 31) if rank == 0 else slice(31, 50)
    data = (x[cut].double(), y[cut])
    risk = nl.EmpiricalRisk(model, nn.functional.cross_entropy, data, process_group=group)
    matrices = (nl.curvature.hessian(risk), nl.curvature.gauss_newton(risk))
    values = [nl.curvature.eigsh(matrix, 3, tol=1e-9).values.tolist() for matrix in matrices]
    return [*values[0], *values[1], float(risk.loss())]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = eigenvalues(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    if dist.get_rank() == 0:
        print(found)
    dist.destroy_process_group()
