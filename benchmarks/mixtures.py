"""256 one-dimensional mixtures of 3 components of 25 000 values each: time and likelihood beside scikit-learn.

Ours by EM on histograms for all channels; ours by EM on the values and scikit-learn in a loop for the first 16
channels, their times times 16. Limit for the histograms: 3 s on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from normlens.information.gaussian_mixture import fit

CHANNELS, VALUES, COMPONENTS, SUBSET = 256, 25_000, 3, 16


def values() -> Tensor:
    """Three modes at distances from 0 to 6 standard deviations; some channels skewed, some heavy-tailed."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(VALUES, CHANNELS, generator=draw)
    x += torch.randint(0, COMPONENTS, x.shape, generator=draw) * 6 * torch.rand(CHANNELS, generator=draw)
    x[:, ::4] = (x[:, ::4] / 4).exp()
    x[:, ::5] *= torch.rand(VALUES, 1, generator=draw).clamp_min(1e-3) ** -0.5
    return x


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """Return the mean log-likelihoods, and the seconds on the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, time.perf_counter() - wall, time.process_time() - processor


def scikit_learn(x: Tensor) -> np.ndarray:
    columns = x.T.double().unsqueeze(2).numpy()
    return np.array([GaussianMixture(COMPONENTS, random_state=0).fit(c).score(c) for c in columns])


def main() -> None:
    """Print seconds and the difference of the log-likelihoods from scikit-learn's, in nats a value."""
    x = values()
    every = x[:, :SUBSET]
    fit(x[:1000, :4], COMPONENTS)  # the first call of a process pays for more than itself
    whole, *binned = timed(lambda: fit(x, COMPONENTS).log_likelihood.numpy())
    exact, *direct = timed(lambda: fit(every, COMPONENTS, bins=None).log_likelihood.numpy())
    theirs, *loop = timed(lambda: scikit_learn(every))
    scale = CHANNELS / SUBSET
    print(f"{CHANNELS} mixtures, K = {COMPONENTS}, {VALUES} values each, {torch.get_num_threads()} threads")
    print("                            seconds  of processor   log-likelihood less scikit-learn's: least, median")
    rows = {
        "histograms": (binned, 1.0, whole[:SUBSET]),
        f"values ({SUBSET}, x {scale:.0f})": (direct, scale, exact),
        f"scikit-learn ({SUBSET}, x {scale:.0f})": (loop, scale, theirs),
    }
    for name, ((wall, processor), times, found) in rows.items():
        gain = found - theirs
        print(f"{name:26s} {wall * times:8.1f} {processor * times:13.1f}   {gain.min():+.1e} {np.median(gain):+.1e}")


if __name__ == "__main__":
    main()
