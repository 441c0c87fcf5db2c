"""Warm starts: where a probe's eigenvectors are found again at its next measurement."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.run.probe import Previous
from normlens.run.reading import Reading

__all__ = ["vectors_reading", "warm_start"]

_NAME = "vectors"


def warm_start(previous: Previous, rows: int, name: str = _NAME) -> Tensor | None:
    """Return the last measurement's eigenvectors (n, k), a start for ``eigsh(nearby=True)``; None if none fits.

    Args:
        previous: what the probe read before.
        rows: of the matrix now; other vectors are of another one.
        name: under which they were kept.
    """
    reading = previous.last.get(("", name))
    if reading is None or len(reading.array) != rows:
        return None
    return torch.from_numpy(reading.array).double()


def vectors_reading(vectors: Tensor, name: str = _NAME) -> Reading:
    """Return eigenvectors (n, k) as a reading that is handed to the next measurement and not stored."""
    return Reading(name, vectors.float().cpu().numpy(), dims=("parameter", "index"), stored=False)
