"""What the optimizer transforms cost: a training step of the CNN at batch 64 against the same step of plain SGD.

A step is forward, backward, ``optimizer.step()`` of SGD with momentum. Times are processor times on one thread; each
transform takes turns with plain SGD, and the ratio is the median over the turns. That of PRONG is amortized: the time
of a step in a basis, plus that of what a new basis costs beyond it, over its interval of 1000 steps.
``python optimizer_cost.py`` prints the table and what is beyond its limit; ``python optimizer_cost.py bnp`` does so for
some.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import importlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from normlens.models.cnn import CNN

SHAPES = {"digits, 1x8x8": (1, 8, 8), "color, 3x32x32": (3, 32, 32)}
BATCH, TURNS, STEPS = 64, 40, {"digits, 1x8x8": 20, "color, 3x32x32": 2}
TRANSFORMS: dict[str, tuple[str, float]] = {
    "bnp": ("BNP", 1.3),
    "mean_normalization": ("MeanNormalization", 1.3),
    "prong": ("PRONG", 1.5),
    "weight_rescaling": ("WeightRescaling", 1.1),
    "equi_normalization": ("EquiNormalization", 1.2),
}
NORMS = {"weight_rescaling": "batch_norm"}  # the others are measured on the network without one, which is faster
INTERVAL, NUM_SAMPLES = 1000, 1024


def step_of(shape: tuple[int, ...], norm: str | None, transform: str | None, **settings: object) -> Callable[[], None]:
    """Return a function of one training step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, *shape, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)
    model = CNN(shape, 10, norm=norm, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    if transform is not None:
        module = importlib.import_module(f"normlens.optim.{transform}")
        getattr(module, TRANSFORMS[transform][0])(model, optimizer, **settings)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def time_of(step: Callable[[], None], steps: int) -> float:
    """Return the processor time of a step in milliseconds."""
    begun = time.process_time()
    for _ in range(steps):
        step()
    return 1e3 * (time.process_time() - begun) / steps


def turns_of(calls: list[Callable[[], None]], steps: int) -> list[list[float]]:
    """Return the times of a step, all functions taking turns, after ten turns: PRONG gathers samples at first."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(-10, TURNS):
        for call, found in zip(calls, times, strict=True):
            taken = time_of(call, steps)
            if turn >= 0:
                found.append(taken)
    return times


def compare(name: str, size: str) -> str:
    """Return the row of one transform on one network."""
    shape, limit = SHAPES[size], TRANSFORMS[name][1]
    norm = NORMS.get(name)
    plain, transformed = turns_of([step_of(shape, norm, None), step_of(shape, norm, name)], STEPS[size])
    amortized = new_basis_cost(shape, statistics.median(transformed)) if name == "prong" else 0.0
    ratio = statistics.median((b + amortized) / a for a, b in zip(plain, transformed, strict=True))
    least = (min(transformed) + amortized) / min(plain)
    verdict = "yes" if ratio <= limit else "NO"
    took = f"{statistics.median(plain):.2f} | {statistics.median(transformed) + amortized:.2f}"
    return f"| {name} | {size} | {took} | {ratio:.2f} | {least:.2f} | {limit:g} {verdict} |"


def new_basis_cost(shape: tuple[int, ...], usual: float) -> float:
    """Return what a new basis costs beyond a usual step, in milliseconds per step of its interval.

    Taken where every step gathers samples and every sixteenth, as many as make them up, makes a basis.
    """
    gathering = NUM_SAMPLES // BATCH
    step = step_of(shape, None, "prong", interval=1, num_samples=NUM_SAMPLES)
    found = statistics.median(time_of(step, gathering) for _ in range(5))
    return max(found - usual, 0.0) * gathering / INTERVAL


def main(names: list[str]) -> None:
    """Print the table."""
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, batch {BATCH}, {time.strftime('%Y-%m-%d')}\n")
    print("| transform | network | ms plain | ms | median ratio | minimum ratio | limit, kept |")
    print("|---|---|---|---|---|---|---|")
    for name in names or TRANSFORMS:
        for size in SHAPES:
            print(compare(name, size), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
