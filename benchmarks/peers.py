"""Hessian-vector products against the peers: time, peak memory and error, on one thread.

Each tool multiplies the Hessian of the same network on the same batch with the same vector. Times are processor times,
gradient and all tools taking turns; a product is given in gradients. Peak memory is that of a process of its own which
builds the operator and forms three products. Errors are against double backward in float64. ``python peers.py`` prints
the table of benchmarks/README.md; ``python peers.py peak TOOL NETWORK MODE`` is what it calls for the memory.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import copy
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import normlens as nl
from normlens.curvature.product import Compiled, HessianProduct, Linearized, RetainedGraph

Product = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor]
NETWORKS = ("mlp", "cnn")
MODES = ("train", "eval")


def network(name: str, steps: int) -> tuple[nn.Module, Batch]:
    """Return a network after a few Adam steps, and its one batch."""
    torch.manual_seed(0)
    if name == "mlp":
        digits = nl.data.digits()
        x, y = torch.cat([digits.train[0], digits.test[0]]).flatten(1), torch.cat([digits.train[1], digits.test[1]])
        hidden = [layer for i in (64, 256) for layer in (nn.Linear(i, 256), nn.BatchNorm1d(256), nn.ReLU())]
        model: nn.Module = nn.Sequential(*hidden, nn.Linear(256, 10))
    else:
        x, y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
        model = nl.models.ResNet((3, 32, 32), 10, norm=nn.BatchNorm2d)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, (x, y)


def normlens(product: type[HessianProduct], model: nn.Module, batch: Batch) -> Product:
    """Return our product."""
    return nl.curvature.hessian(nl.EmpiricalRisk(model, cross_entropy, batch), product=product, check=False).matvec


def curvlinops(model: nn.Module, batch: Batch) -> Product:
    """Return that of curvlinops; its check against shuffled data is off, as ours is."""
    from curvlinops import HessianLinearOperator

    data, parameters = [batch], [p for p in model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False)
    return lambda v: operator @ v


def eigenthings(model: nn.Module, batch: Batch) -> Product:
    """Return that of hessian-eigenthings."""
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(model, [batch], supervised_loss(cross_entropy)).matvec


def pyhessian(model: nn.Module, batch: Batch) -> Product:
    """Return that of PyHessian for one batch, which keeps its graph; it puts the model into eval mode."""
    from pyhessian import hessian as PyHessian
    from pyhessian.utils import hessian_vector_product

    if model.training:
        raise RuntimeError("PyHessian calls model.eval()")
    kept = PyHessian(model, nn.CrossEntropyLoss(), data=batch, cuda=False)

    def product(v: Tensor) -> Tensor:
        parts = [
            part.view_as(p) for part, p in zip(v.split([p.numel() for p in kept.params]), kept.params, strict=True)
        ]
        return torch.cat([part.flatten() for part in hessian_vector_product(kept.gradsH, kept.params, parts)])

    return product


TOOLS: dict[str, Callable[[nn.Module, Batch], Product]] = {
    "normlens, retained graph": partial(normlens, RetainedGraph),
    "normlens, linearized": partial(normlens, Linearized),
    "normlens, compiled": partial(normlens, Compiled),
    "PyHessian": pyhessian,
    "hessian-eigenthings": eigenthings,
    "curvlinops": curvlinops,
}


def prepared(name: str, mode: str, steps: int) -> tuple[nn.Module, Batch, Tensor]:
    """Return network, batch and vector."""
    model, batch = network(name, steps)
    model.train(mode == "train")
    n = sum(p.numel() for p in model.parameters())
    return model, batch, torch.randn(n, generator=torch.Generator().manual_seed(1))


def reference(model: nn.Module, batch: Batch, v: Tensor) -> Tensor:
    """Return H v by double backward in float64."""
    double = copy.deepcopy(model).double()
    parameters = list(double.parameters())
    loss = cross_entropy(double(batch[0].double()), batch[1])
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    dot = torch.cat([g.flatten() for g in gradient]) @ v.double()
    return torch.cat([h.flatten() for h in torch.autograd.grad(dot, parameters)])


def built(model: nn.Module, batch: Batch, v: Tensor) -> tuple[dict[str, Product], dict[str, str]]:
    """Return the products that work, after their first call, and why the others do not."""
    ready, failed = {}, {}
    for tool, make in TOOLS.items():
        try:
            ready[tool] = make(copy.deepcopy(model), batch)
            ready[tool](v)
        except Exception as error:  # a peer that cannot do it is a finding
            ready.pop(tool, None)
            failed[tool] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return ready, failed


def timed(functions: dict[str, Callable[[], object]], repetitions: int = 11) -> dict[str, list[float]]:
    """Return processor times, all functions taking turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            begun = time.process_time()
            function()
            times[name].append(time.process_time() - begun)
    return times


def compare(name: str, mode: str) -> None:
    """Print one block of the table."""
    model, batch, v = prepared(name, mode, 60 if name == "mlp" else 8)
    truth = reference(model, batch, v)
    ready, failed = built(model, batch, v)
    own = copy.deepcopy(model)

    def gradient() -> object:
        return torch.autograd.grad(cross_entropy(own(batch[0]), batch[1]), list(own.parameters()))

    times = timed({"gradient": gradient} | {tool: partial(product, v) for tool, product in ready.items()})
    unit = times.pop("gradient")
    for tool in TOOLS:
        if tool in failed:
            print(f"| {name} | {mode} | {tool} | {failed[tool]} | | | |", flush=True)
            continue
        middle = statistics.median(times[tool]) / statistics.median(unit)
        least = min(times[tool]) / min(unit)
        error = float((ready[tool](v).double() - truth).norm() / truth.norm())
        print(
            f"| {name} | {mode} | {tool} | {middle:.2f} | {least:.2f} | {peak(tool, name, mode)} | {error:.1e} |",
            flush=True,
        )


def peak(tool: str, name: str, mode: str) -> str:
    """Return the memory of a process of its own, in MB above that of the same process without an operator."""
    sizes = [
        int(
            subprocess.run(
                [sys.executable, __file__, "peak", t, name, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for t in ("none", tool)
    ]
    return f"{(sizes[1] - sizes[0]) / 1e3:.0f}"


def print_peak(tool: str, name: str, mode: str) -> None:
    """Print the peak memory in kB."""
    model, batch, v = prepared(name, mode, 0)  # untrained: what training leaves behind would hide the peak
    if tool != "none":
        product = TOOLS[tool](model, batch)
        for _ in range(3):
            product(v)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with that of the parent
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| network | mode | tool | median | minimum | peak MB | relative error |")
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        for mode in MODES:
            compare(name, mode)


if __name__ == "__main__":
    print_peak(*sys.argv[2:]) if sys.argv[1:2] == ["peak"] else main()
