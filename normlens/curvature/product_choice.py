"""ProductChoice: which way of forming Hessian-vector products fits a model, its memory, and the number of products."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from normlens.batch import first_samples
from normlens.curvature.central_difference import CentralDifference
from normlens.curvature.hessian_operator import HessianOperator
from normlens.curvature.layout import ParameterLayout
from normlens.curvature.product import (
    Compiled,
    ForwardOverReverse,
    HessianProduct,
    Linearized,
    RecomputedGraph,
    RetainedGraph,
    sized_batches,
)
from normlens.risk import EmpiricalRisk

__all__ = ["Method", "ProductChoice", "choose_product"]

Method: TypeAlias = Literal["auto", "fast"]
"""Products at once, or after a preparation where the number of products pays for it."""

_MISSING = re.compile(r"differentiate twice|derivative for .* is not implemented|double backward", re.IGNORECASE)
# Of the order of what was measured on 2026-11-21 (two shared x86-64 cores, torch 2.13.0 on the CPU, one thread): MLPs
# of 3 and 9 layers with batch norm, ResNet-8. Known to a factor of two: that moves the break-even, and no result.
_TRACING, _COMPILING = 0.05, 0.10  # seconds a node
_RETAINED, _LINEARIZED, _COMPILED = 2.6, 2.15, 1.75  # gradients a product, train mode
_HELD = 4  # times the kept graph's bytes, about: what a linearized function holds
_SAMPLES = 64


class ProductChoice(NamedTuple):
    """A way to form products, and why that one."""

    product: type[HessianProduct]
    reason: str


def choose_product(risk: EmpiricalRisk, method: Method, matvecs: int, memory: int | None) -> ProductChoice:
    """Choose for ``hessian``: see there.

    Raises:
        ValueError: the data hold no sample.
    """
    sized_batches(risk)
    missing = _failure(RecomputedGraph, risk)
    if missing is not None and _MISSING.search(str(missing)):
        return _without_double_backward(risk, missing)
    limit, graph = memory or free_memory(risk) // 4, _Graph.of(risk)
    if graph.bytes > limit:
        forward = _failure(ForwardOverReverse, risk) is None
        why = f"kept graphs would hold {graph.bytes:.1e} bytes, more than {limit:.1e}"
        return ProductChoice(ForwardOverReverse if forward else RecomputedGraph, why)
    if method == "fast":
        return _fastest(risk, graph, matvecs, limit)
    return ProductChoice(RetainedGraph, f"kept graphs hold {graph.bytes:.1e} bytes, less than {limit:.1e}")


def _without_double_backward(risk: EmpiricalRisk, missing: Exception) -> ProductChoice:
    """Only for an operation that has none does it go on to differences: they are never exact."""
    why = f"there is no double backward ({str(missing).strip().splitlines()[0]:.200})"
    if _forward_mode_is_right(risk):
        return ProductChoice(ForwardOverReverse, f"{why}, but forward mode works")
    return ProductChoice(CentralDifference, f"{why}, and forward mode does not work or is wrong")


def _forward_mode_is_right(risk: EmpiricalRisk) -> bool:
    """Compare with differences: jvp(grad) loses what a once_differentiable backward depends on, and says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a check that fails
        try:
            check = HessianOperator(risk.head(_SAMPLES), product=ForwardOverReverse, check=True).check
        except Exception:  # whatever an operation without forward mode raises
            return False
    return check.passed is True and check.difference == check.difference


def _failure(product: type[HessianProduct], risk: EmpiricalRisk) -> Exception | None:
    """Return the error of one product on two samples; of the whole first batch, for a model that takes no two."""
    layout, batch = ParameterLayout(risk), next(risk.batches(), None)
    failed: Exception | None = None
    for part in () if batch is None else (first_samples(batch, 2), batch):
        try:
            product(risk, layout, part)(torch.ones(layout.n, dtype=layout.dtype, device=layout.device))
        except Exception as error:  # whatever a user's model raises
            if _MISSING.search(str(error)):
                return error
            failed = error
        else:
            return None
    return failed


@dataclass(frozen=True)
class _Graph:
    """What the first batch's gradient tells of all: bytes to keep, nodes to trace, and whether it is convolutional."""

    bytes: int
    nodes: int
    convolutional: bool

    @classmethod
    def of(cls, risk: EmpiricalRisk) -> _Graph:
        seen: dict[int, int] = {}

        def remember(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        batches, _ = sized_batches(risk)
        if not batches:
            return cls(0, 0, False)
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            kept = RetainedGraph(risk, ParameterLayout(risk), batches[0][0])
        names = kept.nodes()
        share = sum(size for _, size in batches) / max(1, batches[0][1])
        convolutional = any("onvolution" in name for name in names)
        return cls(round(sum(seen.values()) * share), len(names) * len(batches), convolutional)


def _fastest(risk: EmpiricalRisk, graph: _Graph, matvecs: int, limit: int) -> ProductChoice:
    """Add up preparation and products, in seconds, for each way that is open; take the least."""
    gradient = _gradient_seconds(risk)
    costs: dict[type[HessianProduct], float] = {RetainedGraph: matvecs * _RETAINED * gradient}
    closed = []
    if graph.bytes * _HELD > limit:
        closed.append(f"a linearized gradient would hold {graph.bytes * _HELD:.1e} bytes, more than {limit:.1e}")
    else:
        costs[Linearized] = graph.nodes * _TRACING + matvecs * _LINEARIZED * gradient
        closed += [why] if (why := _no_compiling(risk, graph)) else []
    if not closed:
        costs[Compiled] = graph.nodes * (_TRACING + _COMPILING) + matvecs * _COMPILED * gradient
    best = min(costs, key=costs.__getitem__)
    estimates = ", ".join(f"{way.__name__} {seconds:.2g} s" for way, seconds in costs.items())
    return ProductChoice(best, "; ".join([f"estimated for {matvecs} products: {estimates}", *closed]))


def _no_compiling(risk: EmpiricalRisk, graph: _Graph) -> str:
    """Return why compiling is out of the question; nothing if it is not."""
    if graph.convolutional:
        return "compiling does not pay for convolutions"
    if ParameterLayout(risk).device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "compiling needs triton"
    compiler = os.environ.get("CXX") or "g++"
    found = any(shutil.which(name) for name in (compiler, "clang++"))
    return "" if found else "compiling needs a C++ compiler (install g++, or set CXX)"


def _gradient_seconds(risk: EmpiricalRisk) -> float:
    """Return the time of one gradient: the better of two."""
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        risk.gradient()
        times.append(time.perf_counter() - begun)
    return min(times)


def free_memory(risk: EmpiricalRisk) -> int:
    """Return the free bytes of the device that holds the parameters."""
    device = ParameterLayout(risk).device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30
