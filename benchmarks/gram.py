"""The exact Gauss-Newton spectrum of an 86k-parameter network with batch norm on 256 digits: time and memory.

A Gram matrix of 2560 x 2560, 2304 of whose eigenvalues are not zero. Limits: 15 s on two cores, 1.5 GB.
"""

from __future__ import annotations

import resource
import time

import torch
from torch import nn

import normlens as nl


def main() -> None:
    """Print time, peak memory and the condition number."""
    images, labels = nl.data.digits().train
    torch.manual_seed(0)
    hidden = [layer for i in (64, 256) for layer in (nn.Linear(i, 256), nn.BatchNorm1d(256), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))
    risk = nl.EmpiricalRisk(model, nn.functional.cross_entropy, (images[:256], labels[:256]))
    begun = time.perf_counter()
    spectrum = nl.curvature.gauss_newton_spectrum(risk)
    result = nl.curvature.condition_number(spectrum, tolerance=1e-9)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"exact Gauss-Newton spectrum, 256 digits: {seconds:.1f} s, peak {peak:.2f} GB, rank {spectrum.rank}")
    print(f"  {result}")


if __name__ == "__main__":
    main()
