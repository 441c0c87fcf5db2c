"""A program for torchrun: a batch norm whose batch lies on two ranks; rank 0 prints what both computed together."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from normlens.nn.batch_norm import BatchNorm

SAMPLES = 12
FIRST_SHARDS = {"equal": 6, "unequal": 9, "one sample": 11, "nothing": 12}
"""How many of the samples are those of rank 0."""


def numbers(group: dist.ProcessGroup | None, rows: slice) -> list[float]:
    """Return outputs, gradients, Hessian-vector products and buffers; ``rows`` are the samples of this rank."""
    generator = torch.Generator().manual_seed(7)
    x, readout, v = torch.randn(3, SAMPLES, 3, 2, generator=generator, dtype=torch.float64)[:, rows]
    layer = BatchNorm(3, dtype=torch.float64, process_group=group)
    leaf = (x * torch.tensor([1.0, 2.0]) + 1).requires_grad_()
    y = layer(leaf)
    at = [leaf, *layer.parameters()]
    gradients = torch.autograd.grad((y.tanh() * readout).sum(), at, create_graph=True)
    products = torch.autograd.grad((gradients[0] * v).sum(), at[:2])
    of_samples = torch.zeros(3, SAMPLES, 3, 2, dtype=torch.float64)
    of_samples[:, rows] = torch.stack([y, gradients[0], products[0]]).detach()
    shared = torch.cat([gradients[1], gradients[2], products[1]]).detach()
    parts = [_sum(of_samples, group), _sum(shared, group), *layer.buffers()]
    return [float(value) for part in parts for value in part.flatten()]


def _sum(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(tensor, group=group)
    return tensor


if __name__ == "__main__":
    dist.init_process_group("gloo")
    cuts = {name: (slice(0, n), slice(n, SAMPLES))[dist.get_rank()] for name, n in FIRST_SHARDS.items()}
    found = {name: numbers(dist.group.WORLD, rows) for name, rows in cuts.items()}
    if dist.get_rank() == 0:
        print(found)
    dist.destroy_process_group()
