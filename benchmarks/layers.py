"""Forward and backward of every layer of normlens.nn against PyTorch's batch norm: time and peak memory, on one thread.

The layers are those that ``normlens list`` knows, as they are built from ``num_features`` alone but for ``SETTINGS``.
Times are processor times; each layer takes turns with batch norm, and the ratio is the median over the turns. Peak
memory is that of a process of its own after three calls beyond that of one with the identity in the layer's place, for
the large input; at the small one it drowns in what the allocator holds.
``python layers.py`` prints the table and what is beyond its limit; ``python layers.py mixture_norm`` does so for some;
``python layers.py peak NAME SHAPE`` is what it calls for the memory.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from normlens import catalog

LARGE = "64x64x32x32"
SHAPES = {LARGE: (64, 64, 32, 32), "256x512": (256, 512)}
REPETITIONS = 25
CALLS = {LARGE: 1, "256x512": 20}  # in one reading of the clock
REFERENCE, IDENTITY = "torch", "identity"

ON_A_KERNEL = {"batch_norm", "group_norm", "instance_norm", "layer_norm"}
WITHOUT_ITS_KERNEL = {("group_norm", "256x512")}  # PyTorch's takes 7.4 times as long as batch norm there
TWO_STATISTICS = {
    "batch_channel_norm", "divisive_norm", "evo_norm", "filter_response_norm", "instance_enhancement_batch_norm",
    "switchable_norm",
}  # fmt: skip
LIMITS = {"decorrelated_batch_norm": 12.0, "iterative_norm": 12.0, "mixture_norm": 30.0}
SETTINGS: dict[str, dict[str, object]] = {
    "decorrelated_batch_norm": {"group_size": 16},
    "iterative_norm": {"group_size": 16},
    "mixture_norm": {"components": 3},
}


def limit_of(name: str, size: str) -> float:
    """Return how many times batch norm's time a layer may take."""
    on_a_kernel = name in ON_A_KERNEL and (name, size) not in WITHOUT_ITS_KERNEL
    by_class = 1.1 if on_a_kernel else 7.0 if name in TWO_STATISTICS else 4.0
    return LIMITS.get(name, by_class)


def build(name: str, shape: tuple[int, ...]) -> nn.Module:
    """Return a layer for an input of that shape, the reference among them."""
    if name == IDENTITY:
        return nn.Identity()
    if name == REFERENCE:
        return nn.BatchNorm1d(shape[1]) if len(shape) == 2 else nn.BatchNorm2d(shape[1])
    layer: nn.Module = catalog.load("normlens.nn", name)(shape[1], **SETTINGS.get(name, {}))
    return layer


def call_of(layer: nn.Module, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """Return a function of one forward and backward pass, in train mode."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).mul_(2).add_(1).requires_grad_()
    cotangent = torch.randn(shape, generator=generator)
    leaves = [x, *layer.parameters()]

    def call() -> Tensor:
        return torch.autograd.grad(layer(x), leaves, cotangent)[0]

    return call


def times_of(calls: dict[str, Callable[[], Tensor]], size: str) -> dict[str, list[float]]:
    """Return processor times of a call, all functions taking turns, after two turns to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(-2, REPETITIONS):
        for name, call in calls.items():
            begun = time.process_time()
            for _ in range(CALLS[size]):
                call()
            if repetition >= 0:
                times[name].append((time.process_time() - begun) / CALLS[size])
    return times


def compare(name: str, size: str) -> str:
    """Return the row of one layer at one shape."""
    shape, limit = SHAPES[size], limit_of(name, size)
    try:
        call = call_of(build(name, shape), shape)
        call()
    except ValueError as refused:
        return f"| {name} | {size} | refused: {str(refused).split(';')[0]} | | | | |"
    times = times_of({REFERENCE: call_of(build(REFERENCE, shape), shape), name: call}, size)
    ratio = statistics.median(a / b for a, b in zip(times[name], times[REFERENCE], strict=True))
    least = min(times[name]) / min(times[REFERENCE])
    verdict = "yes" if ratio <= limit else "NO"
    times_said = f"{1e3 * statistics.median(times[name]):.2f} | {ratio:.2f} | {least:.2f}"
    return f"| {name} | {size} | {times_said} | {memory(name, size)} | {limit:g} {verdict} |"


def memory(name: str, size: str) -> str:
    """Return the peak memory of a layer in MB, where the input is large."""
    return f"{(peak(name, size) - peak(IDENTITY, size)) / 1e3:.0f}" if size == LARGE else ""


@cache
def peak(name: str, size: str) -> int:
    """Return the peak memory of a process of its own, in kB."""
    command = [sys.executable, __file__, "peak", name, size]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str, size: str) -> None:
    """Print the peak memory of three calls in kB."""
    shape = SHAPES[size]
    call = call_of(build(name, shape), shape)
    for _ in range(3):
        call()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with that of the parent
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main(names: list[str]) -> None:
    """Print the table."""
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| layer | input | ms | median ratio | minimum ratio | peak MB | limit, kept |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {REFERENCE} | {LARGE} | | 1 | 1 | {memory(REFERENCE, LARGE)} | |", flush=True)
    rows = [(name, size) for name in names or catalog.names("normlens.nn") for size in SHAPES]
    for name, size in rows:
        print(compare(name, size), flush=True)


if __name__ == "__main__":
    print_peak(*sys.argv[2:]) if sys.argv[1:2] == ["peak"] else main(sys.argv[1:])
