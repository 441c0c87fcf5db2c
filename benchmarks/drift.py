"""Drift of 64 channels at 4096 values: time of the histogram and of each measure, and SciPy's on the same values.

``python drift.py`` prints the time of one drift measurement against its limit of 5 ms, and each measure beside
SciPy's (time, and the deviation in percent of the mean over the channels) for several kinds of activations. Times are
processor times on one thread, medians of interleaved repetitions.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from scipy import stats
from torch import Tensor

from normlens.information.divergence import (
    effective_count,
    energy,
    kolmogorov_smirnov,
    kolmogorov_smirnov_floor,
    wasserstein,
    wasserstein_floor,
)
from normlens.information.divergence.cumulative import both_of
from normlens.information.histogram import AsinhGrid, Histogram

SAMPLES, POSITIONS, CHANNELS = 256, 16, 64
LIMIT = 5.0  # milliseconds
REPETITIONS = 31

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal, moved by 0.5 sd": lambda u: 0.5 + u,
    "normal, moved by 5 sd": lambda u: 5 + u,
    "normal, 1.3 times as wide": lambda u: 1.3 * u,
    "rectified, moved by 0.5": lambda u: (u + 0.5).relu(),
    "Student with 3 degrees, moved by 1": lambda u: 1 + _student(u),
    "mean 1000, moved by 0.5 sd": lambda u: 1000.5 + u,
}
BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "rectified, moved by 0.5": torch.relu,
    "Student with 3 degrees, moved by 1": lambda u: _student(u),
    "mean 1000, moved by 0.5 sd": lambda u: 1000 + u,
}


def _student(u: Tensor) -> Tensor:
    return torch.from_numpy(stats.t(3).ppf(stats.norm.cdf(u.double()))).to(u)


def milliseconds(calls: dict[str, Callable[[], object]], repetitions: int = REPETITIONS) -> dict[str, list[float]]:
    """Return the median and the least processor time of each call, all taking turns, after two turns to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(-2, repetitions):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if repetition >= 0:
                times[name].append(1e3 * (time.process_time() - begun))
    return {name: [statistics.median(each), min(each)] for name, each in times.items()}


def draw(name: str) -> tuple[Tensor, Tensor, Histogram]:
    """Return values before and after, (samples, positions, channels), and the histogram of those before."""
    shape, generator = (SAMPLES, POSITIONS, CHANNELS), torch.Generator().manual_seed(0)
    before, after = (torch.randn(shape, generator=generator) for _ in range(2))
    before, after = BEFORE.get(name, lambda u: u)(before), ACTIVATIONS[name](after)
    grid = AsinhGrid.around(before.double().mean((0, 1)), before.double().std((0, 1)))
    return before, after, Histogram.of(before, grid)


def measurement(after: Tensor, reference: Histogram) -> tuple[float, float]:
    """Do what the probe does for a layer: count, compare by W1 and KS, and find both floors."""
    h = Histogram.of(after, reference.grid)
    n = effective_count(after, h)
    w1, ks = (float(values.mean()) for values, _ in both_of(h, reference))
    return w1 / float(wasserstein_floor(h, n, n).mean()), ks / float(kolmogorov_smirnov_floor(n, n).mean())


def print_cost() -> None:
    """Print the time of one measurement and of its parts."""
    _, after, reference = draw("normal, moved by 0.5 sd")
    h = Histogram.of(after, reference.grid)
    n = effective_count(after, h)

    def floor() -> None:
        wasserstein_floor(replace(h), n, n)  # a copy, which has to find its quantiles anew

    times = milliseconds({
        "one drift: histogram, W1, KS and their floors": lambda: measurement(after, reference),
        "of these the histogram": lambda: Histogram.of(after, reference.grid),
        "W1 and KS": lambda: both_of(h, reference),
        "effective counts": lambda: effective_count(after, h),
        "floor of W1": floor,
    })  # fmt: skip
    print(f"{CHANNELS} channels of {SAMPLES * POSITIONS} values, float32, one thread\n")
    print("| what | ms | least ms | limit 5 ms |")
    print("|---|---|---|---|")
    for place, (name, (median, least)) in enumerate(times.items()):
        verdict = ("yes" if median <= LIMIT else "NO") if place == 0 else ""
        print(f"| {name} | {median:.2f} | {least:.2f} | {verdict} |")


def print_agreement() -> None:
    """Print each measure beside SciPy's on the raw values."""
    print("\n| activations | measure | normlens | SciPy | deviation % | its bound % | SciPy ms | normlens ms |")
    print("|---|---|---|---|---|---|---|---|")
    oracles = {
        "W1": (wasserstein, stats.wasserstein_distance),
        "KS": (kolmogorov_smirnov, lambda a, b: stats.ks_2samp(a, b, method="asymp").statistic),
        "energy": (energy, stats.energy_distance),
    }
    for name in ACTIVATIONS:
        before, after, reference = draw(name)
        h = Histogram.of(after, reference.grid)
        columns = [x.flatten(0, 1).T.double().numpy() for x in (before, after)]
        for kind, (ours, theirs) in oracles.items():

            def of_scipy(theirs: Callable[..., float] = theirs, columns: list[object] = columns) -> float:
                return statistics.fmean(theirs(a, b) for a, b in zip(*columns, strict=True))

            def of_histograms(
                ours: Callable[..., object] = ours, after: Tensor = after, to: Histogram = reference
            ) -> None:
                ours(Histogram.of(after, to.grid), to)

            exact, found = of_scipy(), ours(reference, h)
            times = milliseconds({"scipy": of_scipy, "normlens": of_histograms}, repetitions=5)
            deviation, bound = (f"{100 * part / exact:+.2f}" for part in (found.value - exact, found.error))
            spent = f"{times['scipy'][0]:.1f} | {times['normlens'][0]:.2f}"
            print(f"| {name} | {kind} | {found.value:.4f} | {exact:.4f} | {deviation} | {bound} | {spent} |")


def main() -> None:
    """Print both tables."""
    print_cost()
    print_agreement()


if __name__ == "__main__":
    main()
