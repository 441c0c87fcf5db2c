"""What curvature costs: a product against a gradient, and the top eigenpairs.

The network is the 86k-parameter MLP with batch norm on all 1797 digits after 60 full-batch Adam steps. Ratios are
processor times on one thread, product and gradient interleaved, median and minimum of 11.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import normlens as nl
from normlens.curvature.product import ForwardOverReverse, Linearized, RetainedGraph


def trained_mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return the network after its training, and all digits, flat."""
    digits = nl.data.digits()
    x = torch.cat([digits.train[0], digits.test[0]]).flatten(1)
    y = torch.cat([digits.train[1], digits.test[1]])
    torch.manual_seed(0)
    hidden = [layer for i in (64, 256) for layer in (nn.Linear(i, 256), nn.BatchNorm1d(256), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def ratios(gradient: Callable[[], object], product: Callable[[], object], repetitions: int = 11) -> tuple[float, float]:
    """Return median and minimum of product time over those of gradient time."""
    times: dict[str, list[float]] = {"gradient": [], "product": []}
    for _ in range(repetitions):
        for name, function in (("gradient", gradient), ("product", product)):
            begun = time.process_time()
            function()
            times[name].append(time.process_time() - begun)
    middle = statistics.median(times["product"]) / statistics.median(times["gradient"])
    return middle, min(times["product"]) / min(times["gradient"])


def products(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Print the cost of one product in gradients."""
    parameters = list(model.parameters())

    def gradient() -> object:
        return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)

    for mode in ("train", "eval"):
        risk = nl.EmpiricalRisk(model, nn.functional.cross_entropy, (x, y), mode=mode)
        model.train(mode == "train")
        for product in (RetainedGraph, ForwardOverReverse, Linearized):
            operator = nl.curvature.hessian(risk, product=product, check=False)
            v = torch.randn(operator.shape[0])
            middle, least = ratios(gradient, lambda: operator @ v)  # noqa: B023
            print(f"product, {mode:5} {product.__name__:20} {middle:.2f} gradients (median), {least:.2f} (minimum)")
    model.train()


def eigenpairs(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Print the products that the top five pairs take."""
    for mode in ("train", "eval"):
        risk = nl.EmpiricalRisk(model, nn.functional.cross_entropy, (x, y), mode=mode)
        operator = nl.curvature.hessian(risk, check=False)
        for tol in (1e-3, 1e-6):
            pairs = nl.curvature.eigsh(operator, 5, tol=tol)
            top = float(pairs.values[0])
            residual = max(
                float((operator @ v - value * v).norm()) / top
                for value, v in zip(pairs.values, pairs.vectors.T, strict=True)
            )
            print(
                f"top five, {mode:5} tol {tol:g}: {pairs.matvecs} products, residual {residual:.1e}, {top:.4g} largest"
            )


if __name__ == "__main__":
    network = trained_mlp()
    products(*network)
    eigenpairs(*network)
