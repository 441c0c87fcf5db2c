"""What the optimizer transforms do on digits: BNP where batch norm cannot train, and weight norms held by rescaling.

Three seeds each, medians. ``python optimizers_on_digits.py`` prints both tables (about ten minutes on two cores);
``python optimizers_on_digits.py bnp`` or ``... rescaling`` one of them.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlens.data import digits
from normlens.models import CNN, MLP
from normlens.optim import BNP, Transform, WeightRescaling

SEEDS = (0, 1, 2)
TARGET, MOST_STEPS, LOOK_EVERY = 0.3, 6000, 50
Optimize: TypeAlias = Callable[[nn.Module, float], "tuple[torch.optim.Optimizer, Transform | None]"]

DATA = digits()


def batches(size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches forever, every epoch in another order; a last smaller batch is left out."""
    loader = DATA.loader(size, seed=seed)
    while True:
        yield from (batch for batch in loader if len(batch[1]) == size)


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on the test part in eval mode."""
    x, y = DATA.test
    model.eval()
    with torch.no_grad():
        right = float((model(x).argmax(1) == y).double().mean())
    model.train()
    return right


def training_loss(model: nn.Module) -> float:
    """Return the loss on the whole training part in eval mode, which is the same function without batch norm."""
    x, y = DATA.train
    model.eval()
    with torch.no_grad():
        loss = float(cross_entropy(model(x), y))
    model.train()
    return loss


def sgd(model: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, None]:
    """Plain stochastic gradient descent."""
    return torch.optim.SGD(model.parameters(), lr=lr), None


def bnp(model: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, Transform]:
    """The same, batch-norm-preconditioned."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return optimizer, BNP(model, optimizer, bias_correction=True)


def steps_to_target(optimize: Optimize, norm: str | None, lr: float, size: int, seed: int) -> float:
    """Return after how many steps the training loss was at the target, infinity for never; nan if it cannot train."""
    model = MLP(DATA.shape, len(DATA.classes), norm=norm, seed=seed)
    optimizer, _ = optimize(model, lr)
    for step, (x, y) in enumerate(batches(size, seed), start=1):
        try:
            loss = cross_entropy(model(x), y)
        except ValueError:
            return math.nan
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not bool(loss.isfinite()) or step > MOST_STEPS:
            return math.inf
        if step % LOOK_EVERY == 0 and training_loss(model) <= TARGET:
            return step
    return math.inf


def compare_bnp() -> None:
    """Print how many steps each takes at its best learning rate, which is chosen by the median over the seeds."""
    print(
        f"\nsteps until the training loss is {TARGET}, MLP on digits, best of six rates, median of {len(SEEDS)} seeds\n"
    )
    print("| batch | SGD | BNP | batch norm with SGD |")
    print("|---|---|---|---|")
    rates = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    for size in (1, 2):
        scale = {
            "none, sgd": 1.0,
            "none, bnp": 10.0,
            "batch_norm, sgd": 1.0,
        }  # q divides BNP's gradient at small batches
        cells = []
        for name, optimize, norm in [
            ("none, sgd", sgd, None),
            ("none, bnp", bnp, None),
            ("batch_norm, sgd", sgd, "batch_norm"),
        ]:
            medians = {}
            for lr in (scale[name] * r for r in rates):
                found = [steps_to_target(optimize, norm, lr, size, seed) for seed in SEEDS]
                medians[lr] = math.nan if any(map(math.isnan, found)) else statistics.median(found)
            best = min(medians, key=lambda lr: medians[lr] if not math.isnan(medians[lr]) else math.inf)
            cells.append(said(medians[best], best))
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


def said(steps: float, lr: float) -> str:
    """Say a number of steps in words."""
    if math.isnan(steps):
        return "cannot train: one value per channel"
    return f"not within {MOST_STEPS}" if math.isinf(steps) else f"{steps:.0f} (rate {lr:g})"


def compare_rescaling() -> None:
    """Print accuracy and norms of a batch-normalized CNN under nothing, weight decay and weight rescaling."""
    print("\nCNN with batch norm on digits, SGD with momentum 0.9, rate 0.05, 15 epochs\n")
    print("| | test accuracy, median (three seeds) | weight norms at the end / start |")
    print("|---|---|---|")
    for name, decay, rescale in [
        ("nothing", 0.0, False),
        ("weight decay 5e-4", 5e-4, False),
        ("weight rescaling", 0.0, True),
    ]:
        found = [trained(decay, rescale, seed) for seed in SEEDS]
        values = ", ".join(f"{a:.3f}" for a, _ in found)
        growth = statistics.median(g for _, g in found)
        print(f"| {name} | {statistics.median(a for a, _ in found):.3f} ({values}) | {growth:.4f} |", flush=True)


def trained(decay: float, rescale: bool, seed: int) -> tuple[float, float]:
    """Return the test accuracy and how far the farthest convolution's norm moved, as a factor."""
    model = CNN(DATA.shape, len(DATA.classes), norm="batch_norm", seed=seed)
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    before = [float(w.detach().norm()) for w in convolutions]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
    if rescale:
        WeightRescaling(model, optimizer, norm=None)
    for _ in range(15):
        for x, y in DATA.loader(64, seed=seed):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    factors = [float(w.detach().norm()) / b for w, b in zip(convolutions, before, strict=True)]
    return accuracy(model), max(factors, key=lambda f: abs(math.log(f)))


def main(names: list[str]) -> None:
    """Print the tables."""
    print(f"{platform.machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    if not names or "bnp" in names:
        compare_bnp()
    if not names or "rescaling" in names:
        compare_rescaling()


if __name__ == "__main__":
    main(sys.argv[1:])
