"""What it costs to follow the sharpness through a training run, and whether it is still the sharpness.

The 86k-parameter network with batch norm is trained by full-batch gradient descent on all digits. Every few steps
the largest eigenvalue of its Hessian is found from the last measurement's eigenvector and a fresh random direction, and
held against a cold start run to a residual of 1e-6. Limits: a median of 8 products, and within 1 % of the converged
value in 95 % of the measurements.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import sys

import torch
from torch import nn

import normlens as nl
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

MEASUREMENTS = int(sys.argv[1]) if len(sys.argv) > 1 else 60


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [layer for i in (64, 256) for layer in (nn.Linear(i, 256), nn.BatchNorm1d(256), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def follow(optimizer_of, every: int, seed: int = 0) -> tuple[list[int], list[float]]:
    """Return the products of each warm measurement, and its relative error."""
    digits = nl.data.digits()
    x, y = torch.cat([digits.train[0], digits.test[0]]).flatten(1), torch.cat([digits.train[1], digits.test[1]])
    model, probe, previous = network(seed), nl.probes.EdgeOfStability(), Previous()
    optimizer = optimizer_of(model)
    products, errors = [], []
    for index in range(MEASUREMENTS * every):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if index % every:
            continue
        risk = nl.EmpiricalRisk(model, nn.functional.cross_entropy, (x, y))
        generator = torch.Generator().manual_seed(index)
        step = Step(index, risk, Activations(risk), previous, optimizer, generator)
        readings = {("", r.name): r for r in probe(step)}
        if previous.last:
            exact = nl.curvature.eigsh(nl.curvature.hessian(risk, check=False), 1, tol=1e-6)
            products.append(int(readings["", "matvecs"].value))
            errors.append(abs(readings["", "sharpness"].value / float(exact.values[0]) - 1))
        previous = Previous(readings, readings)
    return products, errors


def main() -> None:
    settings = {
        "SGD, rate 0.1, every 1": (lambda m: torch.optim.SGD(m.parameters(), lr=0.1), 1),
        "SGD, rate 0.1, every 10": (lambda m: torch.optim.SGD(m.parameters(), lr=0.1), 10),
        "momentum 0.9, rate 0.05, every 10": (lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9), 10),
        "SGD, rate 0.5, every 5": (lambda m: torch.optim.SGD(m.parameters(), lr=0.5), 5),
    }
    for name, (optimizer_of, every) in settings.items():
        products, errors = follow(optimizer_of, every)
        near = sum(error <= 0.01 for error in errors) / len(errors)
        print(
            f"{name}: median {statistics.median(products):g} products (largest {max(products)}), within 1 % in "
            f"{near:.0%} of {len(errors)}, largest error {max(errors):.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
