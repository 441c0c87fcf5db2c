"""Estimators of mutual information on pairs of known information: bias, spread and time beside scikit-learn's KSG.

Each case is drawn with 30 seeds. ``python mutual_information.py`` prints the table for 2000 and for 10 000 samples, the
ratio of the information behind and before the gates, and the time of the whole matrices; ``python mutual_information.py
10000`` prints the table for so many samples alone, ``python mutual_information.py matrix`` the matrices.

A target is met where the bias exceeds it by no more than three standard errors of the mean over the seeds; "doubtless"
says that the bias and three standard errors together are below it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch is imported

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.integrate import quad
from scipy.special import ndtr, xlogy
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from normlens.information import mutual_information as mi

SEEDS = 30
CHANNELS, SAMPLES = 512, 2000
LIMIT_COPULA, LIMIT_BINS = 2.0, 8.0  # seconds


@dataclass(frozen=True)
class Case:
    """A pair of variables: a Gaussian one of some correlation, rectified or not, then gated or not."""

    name: str
    rho: float
    keep: float = 1.0
    form: str = "gaussian"  # "relu": rectified; "norm": rectified and normalized
    limits: tuple[float, float] = (math.inf, math.inf)  # of the bias at 2000 and at 10 000 samples

    @property
    def truth(self) -> float:
        """The information of the pair."""
        if self.form == "relu":
            return rectified_information(self.rho, self.keep)
        whole = -0.5 * math.log(1 - self.rho**2) if self.form == "gaussian" else rectified_information(self.rho, 1.0)
        return self.keep**2 * whole

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return both variables, in float32 as a network has them, and their gates."""
        generator = torch.Generator().manual_seed(seed)
        x, z = torch.randn(2, n, generator=generator, dtype=torch.float64)
        pair = [v.float() for v in (x, self.rho * x + math.sqrt(1 - self.rho**2) * z)]
        if self.form != "gaussian":
            pair = [v.relu() for v in pair]
        if self.form == "norm":
            pair = [(v - v.mean()) / v.std() for v in pair]
        first, second = torch.rand(2, n, generator=generator) < self.keep
        return pair[0] * first / self.keep, pair[1] * second / self.keep, (first, second)


CASES = [
    Case("rho 0", 0.0, limits=(0.03, 0.01)),
    Case("rho .6", 0.6, limits=(0.03, 0.01)),
    Case("rho .9", 0.9, limits=(0.03, 0.01)),
    Case("rho .99", 0.99),
    Case("gate, rho 0, keep .5", 0.0, 0.5, limits=(0.04, 0.01)),
    Case("gate, rho .9, keep .8", 0.9, 0.8, limits=(0.04, 0.01)),
    Case("gate, rho .9, keep .5", 0.9, 0.5, limits=(0.04, 0.01)),
    Case("ReLU, gate, rho .8, keep .8", 0.8, 0.8, "relu", (0.04, 0.02)),
    Case("ReLU, BN, gate, rho .9, keep .8", 0.9, 0.8, "norm", (0.04, 0.02)),
]


def rectified_information(rho: float, keep: float) -> float:
    """Return the information of a Gaussian pair behind ReLU and independent gates, by one quadrature."""
    spread, zero = math.sqrt(1 - rho**2), 1 - keep / 2
    both = keep**2 * (0.25 + math.asin(rho) / (2 * math.pi))
    neither = 1 - keep + both

    def one(x: float) -> float:
        other = 1 - keep + keep * float(ndtr(-rho * x / spread))
        return keep * math.exp(-x * x / 2) / math.sqrt(2 * math.pi) * float(xlogy(other, other / zero))

    density = -0.5 * both * math.log(1 - rho**2) + keep**2 * rho * spread / (2 * math.pi)
    return neither * math.log(neither / zero**2) + 2 * float(quad(one, 0, 12)[0]) + density


def scikit_learn(x: Tensor, y: Tensor) -> float:
    """Return the estimate of the variables as they are."""
    return float(mutual_info_regression(x[:, None].numpy(), y.numpy(), n_neighbors=3, random_state=0)[0])


def estimators(case: Case) -> dict[str, Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], float]]:
    """Return what is compared on a case; the copula and KSG where there are no atoms."""
    found: dict[str, Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], float]] = {
        "hurdle": lambda x, y, keep: mi.hurdle(x, y).value,
        "binned": lambda x, y, keep: mi.binned(x, y).value,
        "scikit-learn": lambda x, y, keep: scikit_learn(x, y),
    }
    if case.keep < 1 and case.form != "relu":  # with an atom at zero the gates tell more than the variables
        found["hurdle, gates known"] = lambda x, y, keep: mi.hurdle(x, y, keep=keep).value
    if case.keep == 1:
        found |= {"ksg": lambda x, y, keep: mi.ksg(x, y).value}
        found |= {"gaussian_copula": lambda x, y, keep: mi.gaussian_copula(x, y).value}
    return found


def verdict(bias: float, error: float, limit: float) -> str:
    """Compare a bias and its standard error with the target."""
    if math.isinf(limit):
        return ""
    return (
        "met, doubtless" if abs(bias) + 3 * error <= limit else "met" if abs(bias) <= limit + 3 * error else "not met"
    )


def print_cases(n: int) -> None:
    """Print bias, spread and time of every estimator on every case."""
    print(f"\n| case, N = {n} | truth | estimator | bias | 3 s.e. | spread | ms | target | |\n|{'---|' * 9}")
    for case in CASES:
        limit = case.limits[n >= 10_000]
        pairs = [case.draw(n, seed) for seed in range(SEEDS)]
        for name, estimator in estimators(case).items():
            begun = time.perf_counter()
            values = [estimator(*pair) for pair in pairs]
            milliseconds = 1e3 * (time.perf_counter() - begun) / SEEDS
            bias, spread = statistics.mean(values) - case.truth, statistics.stdev(values)
            error = spread / math.sqrt(SEEDS)
            judged = verdict(bias, error, limit) if name.startswith(("hurdle", "ksg")) else ""
            print(
                f"| {case.name} | {case.truth + 0.0:.4f} | {name} | {bias:+.4f} | {3 * error:.4f} | {spread:.4f} "
                f"| {milliseconds:.1f} | {'' if math.isinf(limit) else limit} | {judged} |",
                flush=True,
            )


def print_ratios(n: int = 10_000, rho: float = 0.9) -> None:
    """Print the information behind the gates over the one before them."""
    print(
        f"\n| ratio at rho {rho}, N = {n} | keep squared | mean | spread | farthest from it | within .05 |\n"
        f"|{'---|' * 6}"
    )
    for keep in (0.5, 0.8, 0.95):
        ratios = []
        for seed in range(SEEDS):
            before = mi.hurdle(*Case("", rho).draw(n, seed)[:2]).value
            ratios.append(mi.hurdle(*Case("", rho, keep).draw(n, seed)[:2]).value / before)
        off = max(abs(ratio - keep**2) for ratio in ratios)
        inside = sum(abs(ratio - keep**2) <= 0.05 for ratio in ratios)
        mean, spread = statistics.mean(ratios), statistics.stdev(ratios)
        print(f"| keep {keep} | {keep**2:.4f} | {mean:.4f} | {spread:.4f} | {off:.4f} | {inside} of {SEEDS} |")


def print_matrices() -> None:
    """Print the time of the whole matrices."""
    x = torch.randn(SAMPLES, CHANNELS, generator=torch.Generator().manual_seed(0))
    x = 0.6 * x + 0.4 * x[:, :1]
    print(f"\n| matrix of {CHANNELS} channels, N = {SAMPLES} | median s of 5 | limit |\n|---|---|---|")
    for name, matrix, limit in (
        ("gaussian_copula_matrix", mi.gaussian_copula_matrix, LIMIT_COPULA),
        ("binned_matrix, 8 bins", mi.binned_matrix, LIMIT_BINS),
    ):
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            matrix(x)
            times.append(time.perf_counter() - begun)
        print(f"| {name} | {statistics.median(times):.2f} | {limit} |", flush=True)


def main() -> None:
    """Print all tables, or the one asked for."""
    asked = sys.argv[1:] or ["2000", "10000", "ratio", "matrix"]
    for what in asked:
        if what == "ratio":
            print_ratios()
        elif what == "matrix":
            print_matrices()
        else:
            print_cases(int(what))


if __name__ == "__main__":
    main()
