"""Modality: how many Gaussian components, and how many modes, does the distribution of each channel have?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normlens.information.gaussian_mixture import GaussianMixture, fit

__all__ = ["Modality", "modality", "modes"]

_GRID = 64  # points for each component on which the slope of the density is looked at


@dataclass(frozen=True, eq=False)
class Modality:
    """What the Bayesian information criterion makes of each of C channels.

    Attributes:
        bic: (C, most), the criterion for one component, two, and so on; twice nats.
        components: (C,), how many are best.
        modes: (C,), of the density of that mixture, see :func:`modes`. Components may overlap, as they do where one
            skewed or heavy-tailed mode takes two of them.
        mixture: the best mixture of each channel, (C, most), the other components of weight 0.

    A channel without a density (constant or not finite) has nan everywhere.
    """

    bic: Tensor
    components: Tensor
    modes: Tensor
    mixture: GaussianMixture

    @property
    def gain(self) -> Tensor:
        """Half of BIC(1) - BIC(best), (C,), at least 0, in nats: the evidence against a single Gaussian."""
        return (self.bic[:, 0] - self.bic.amin(1)) / 2


def modality(
    x: Tensor, *, most: int = 3, independent: int | None = None, bins: int = 512, restarts: int = 4, steps: int = 500,
    tolerance: float = 1e-6,     generator: torch.Generator | None = None,
) -> Modality:  # fmt: skip
    r"""Fit mixtures of one to ``most`` components to each channel and let BIC choose.

    With :math:`\bar\ell_K` the mean log-likelihood a value and p = 3K - 1 parameters,
    :math:`\mathrm{BIC}(K) = -2 n \bar\ell_K + p \ln n`. Where n values come in groups that are not independent, as the
    positions of an image, n is too large and finds components in noise; the number of groups is the cautious choice: it
    is exact where positions repeat each other, and asks for more evidence than needed where they do not.

    Source: Schwarz, Annals of Statistics 6 (1978).

    Args:
        x: (N, C).
        most: components, from one to as many.
        independent: n; by default N.
        bins: cells of the histogram, see :func:`normlens.information.gaussian_mixture.fit`.
        restarts: of EM.
        steps: of EM, at most.
        tolerance: of EM, in nats a value.
        generator: of the starts; by default a fresh one with seed 0.

    Raises:
        ValueError: ``most`` is below 1, or ``independent`` not from 1 to N.
    """
    n = len(x) if independent is None else independent
    if most < 1 or not 1 <= n <= len(x):
        raise ValueError(
            f"modality needs most of at least 1 and independent from 1 to the number of values, {len(x)}; got {most} "
            f"and {n}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    fits = [
        fit(x, k, bins=bins, restarts=restarts, steps=steps, tolerance=tolerance, generator=generator)
        for k in range(1, most + 1)
    ]
    bic = torch.stack([one.bic_at(n) for one in fits], 1)
    best = bic.argmin(1)
    known = torch.where(bic.isnan().any(1), math.nan, 1.0)
    mixture = _chosen(fits, best)
    return Modality(bic, known * (best + 1), known * modes(mixture), mixture)


def modes(mixture: GaussianMixture, *, depth: float = 0.5) -> Tensor:
    r"""Count the modes of each channel's density, (C,): between two of them it falls to ``depth`` of the lower one.

    Two equal components at distance d have two maxima where :math:`d > 2\sigma`, and two modes of this kind where
    :math:`d > 3.33\sigma`. Less deep valleys are what a mixture makes of a uniform or a skewed distribution, whose
    edge takes components of its own: with 0.63 to 1 of the lower maximum between them. nan where there is no density.

    Args:
        mixture: one for each channel; looked at on 64 points over :math:`\mu_k \pm 3 \sigma_k` of each component.
        depth: between 0 and 1.

    Raises:
        ValueError: it is a mixture of vectors, or ``depth`` is out of its range.
    """
    if not mixture.by_channel:
        raise ValueError("modes are counted of one-dimensional mixtures; got one of vectors: use fit, not fit_vectors")
    if not 0 < depth < 1:
        raise ValueError(f"modes need a depth between 0 and 1; got {depth}; 0.5 is a valley of half the height")
    mean, deviation = mixture.means, mixture.variances.sqrt()
    offsets = torch.linspace(-3, 3, _GRID, device=mean.device, dtype=mean.dtype)
    grid = (mean.unsqueeze(2) + deviation.unsqueeze(2) * offsets).flatten(1).sort(1).values
    count = _peaks(mixture.log_density(grid.T), -math.log(depth))
    return torch.where(mean.isnan().any(1), math.nan, count)


def _peaks(heights: Tensor, fall: float) -> Tensor:
    """Count along (M, C) how often the height falls by ``fall``, with a rise by as much between two of the times."""
    falling = torch.zeros_like(heights[0], dtype=torch.bool)
    extreme, count = heights[0], torch.zeros_like(heights[0])
    for height in heights[1:]:
        extreme = torch.where(falling, torch.minimum(extreme, height), torch.maximum(extreme, height))
        turned = torch.where(falling, height - extreme, extreme - height) > fall
        count = count + (turned & ~falling)
        extreme, falling = torch.where(turned, height, extreme), falling ^ turned
    return count


def _chosen(fits: list[GaussianMixture], best: Tensor) -> GaussianMixture:
    """Return each channel's best fit; what it lacks in components has weight 0, and mean and variance of all values."""
    most, rows = len(fits), torch.arange(len(best), device=best.device)
    whole = fits[0]

    def padded(name: str) -> Tensor:
        spare = torch.zeros_like(whole.weights) if name == "weights" else getattr(whole, name)
        parts = [getattr(one, name) for one in fits]
        return torch.stack([torch.cat([part, *[spare] * (most - part.shape[1])], 1) for part in parts])[best, rows]

    def each(name: str) -> Tensor:
        return torch.stack([getattr(one, name) for one in fits])[best, rows]

    parameters = (padded("weights"), padded("means"), padded("variances"))
    return GaussianMixture(*parameters, each("log_likelihood"), whole.values, each("iterations"), each("converged"))
