"""GaussianMixture: mixtures of Gaussians for all channels at once, or one for vectors, fitted by EM."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normlens.information.mixture_em import Components
from normlens.information.mixture_search import Search, double, search

__all__ = ["GaussianMixture", "fit", "fit_vectors"]

_CHUNK = 1 << 20  # numbers that one array of a chunk of channels holds at most: it stays in the processor's cache


def _unknown() -> Tensor:
    return torch.tensor(math.nan, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    r"""Mixtures :math:`p(x) = \sum_k \lambda_k \prod_d N(x_d; \mu_{kd}, \sigma_{kd}^2)`, in float64.

    Either one one-dimensional mixture for each of C channels, all arrays (C, K), with components in the order of their
    means; or one of vectors of D dimensions, with ``weights`` (K,), ``means`` and ``variances`` (K, D), the heaviest
    component first. A component of weight 0 was dropped: it stands last, with mean and variance of all values. Whatever
    parameters you have make one too: ``GaussianMixture(weights, means, variances)``.

    Attributes:
        weights: :math:`\lambda_k`, each mixture's summing to one.
        means: in the unit of the values.
        variances: in its square.
        log_likelihood: mean over the values, in nats a value; (C,), or a scalar for vectors.
        values: how many values (vectors) each mixture was fitted to.
        iterations: EM steps of each mixture after the warm-up.
        converged: whether the last of them rose by less than the tolerance.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    log_likelihood: Tensor = field(default_factory=_unknown)
    values: int = 0
    iterations: Tensor = field(default_factory=lambda: torch.tensor(0))
    converged: Tensor = field(default_factory=lambda: torch.tensor(False))

    def __post_init__(self) -> None:
        shape = self.means.shape
        if self.variances.shape != shape or self.weights.shape not in (shape, shape[:1]) or len(shape) != 2:
            raise ValueError(
                "a mixture needs means and variances (C, K) with weights (C, K), or (K, D) with weights (K,); got "
                f"{tuple(shape)}, {tuple(self.variances.shape)}, {tuple(self.weights.shape)}; one channel is (1, K)"
            )

    @property
    def by_channel(self) -> bool:
        """Whether each channel has a mixture of its own."""
        return self.weights.ndim == 2

    @property
    def grouped(self) -> Components:
        """The parameters in one layout, weights (G, K, 1), the others (G, K, P): P is 1 for channels, G for vectors."""
        if self.by_channel:
            return Components(*(part.unsqueeze(2) for part in (self.weights, self.means, self.variances)))
        return Components(self.weights.view(1, -1, 1), self.means.unsqueeze(0), self.variances.unsqueeze(0))

    @property
    def bic(self) -> Tensor:
        r"""Bayesian information criterion :math:`-2 \ln L + p \ln N` of all values, the smaller the better."""
        return self.bic_at(self.values)

    def bic_at(self, n: float) -> Tensor:
        r"""Return :math:`-2 n \bar\ell + p \ln n`: the criterion for ``n`` independent values.

        With :math:`\bar\ell` the ``log_likelihood`` and p the free parameters of the components that live, K-1 weights,
        K means and K variances a dimension. Twice nats. The positions of one image are no independent values: where
        they are among the values, ``n`` is at least the number of images, and that is the cautious choice.

        Args:
            n: effective number of values.
        """
        alive = (self.weights > 0).sum(-1).to(self.weights.dtype)
        dims = 1 if self.by_channel else self.means.shape[1]
        return (alive * (1 + 2 * dims) - 1) * math.log(n) - 2 * n * self.log_likelihood

    def log_joint(self, x: Tensor) -> Tensor:
        r"""Return :math:`\ln \lambda_k N(x; \mu_k, \sigma_k^2)`, (N, C, K), or (N, K) for vectors.

        Args:
            x: (N, C), or (N, D).

        Raises:
            ValueError: another shape.
        """
        columns = len(self.means) if self.by_channel else self.means.shape[1]
        if x.ndim != 2 or x.shape[1] != columns:
            raise ValueError(f"this mixture needs values of shape (N, {columns}); got {tuple(x.shape)}; reshape them")
        values = double(x)
        deviation = values.unsqueeze(2 if self.by_channel else 1) - self.means
        terms = -0.5 * (deviation.square() / self.variances + self.variances.log() + math.log(2 * math.pi))
        return self.weights.log() + (terms if self.by_channel else terms.sum(-1))

    def log_density(self, x: Tensor) -> Tensor:
        r"""Return :math:`\ln p(x)` in nats, (N, C), or (N,) for vectors; see :meth:`log_joint`."""
        return self.log_joint(x).logsumexp(-1)

    def posterior(self, x: Tensor) -> Tensor:
        r"""Return :math:`\gamma_k(x) = p(k | x)`, (N, C, K), or (N, K) for vectors; see :meth:`log_joint`."""
        return self.log_joint(x).softmax(-1)

    def separation(self) -> Tensor:
        r"""Return :math:`\min_{k \ne l} |\mu_k - \mu_l| / \sqrt{\sigma_k^2 + \sigma_l^2}` over components that live.

        Shape (C,), or () for vectors, whose squared distances add up over the dimensions; nan where one component is
        left. Ashman's D is :math:`\sqrt 2` times it; two equal components are well separated above D = 2.
        """
        weight, mean, var = self.grouped
        distance = ((mean.unsqueeze(2) - mean.unsqueeze(1)).square() / (var.unsqueeze(2) + var.unsqueeze(1))).sum(3)
        dead = (weight <= 0) | (weight.mT <= 0) | torch.eye(weight.shape[1], dtype=torch.bool, device=weight.device)
        least: Tensor = distance.masked_fill(dead, math.inf).amin((1, 2)).sqrt()
        least = torch.where(least.isinf(), math.nan, least)
        return least if self.by_channel else least[0]


def fit(
    x: Tensor,
    components: int = 3,
    *,
    bins: int | None = 512,
    restarts: int = 5,
    steps: int = 500,
    tolerance: float = 1e-6,
    floor: float = 1e-6,
    min_weight: float = 1e-3,
    generator: torch.Generator | None = None,
) -> GaussianMixture:
    """Fit a one-dimensional mixture to each channel, all channels at once.

    EM runs on ``bins`` cells of an asinh histogram that keep their values' mean and mean square, so that the posterior
    alone is that of the cell: what EM climbs is a lower bound of the log-likelihood, which is then taken of the values
    themselves. Some of the ``restarts`` start from k-means++, where tails count for little, the others from k-means; of
    each kind the best after ten steps goes on, and the one that ends higher is returned. A maximum is a local one, as
    always with EM. A channel that is constant or not finite has no density: all its numbers are nan.

    Cost: one pass to bin, then each step ``C * K * bins``. Source: Dempster, Laird and Rubin, JRSS B 39 (1977);
    cells: Verbeek, Nunnink and Vlassis, DMKD 13 (2006), from memory; short runs: Biernacki, Celeux and Govaert, CSDA 41
    (2003), from memory.

    Args:
        x: (N, C).
        components: K.
        bins: cells of the histogram; None for EM on the values themselves, ``N / bins`` times as dear.
        restarts: the first four start from k-means++, further ones from k-means.
        steps: of EM, at most.
        tolerance: of the log-likelihood's rise in one step, in nats a value.
        floor: smallest variance of a component, in that of the channel.
        min_weight: components of a smaller weight are dropped.
        generator: of the starts; by default a fresh one with seed 0.

    Raises:
        ValueError: the shape or a setting is impossible.
    """
    values = _matrix(x)
    how = Search(components, bins, restarts, steps, tolerance, floor, min_weight, _or_new(generator))
    cells = len(values) if bins is None else max(bins, len(values) // components)
    size = max(1, _CHUNK // (cells * components))
    parts = [search(part.T.contiguous().unsqueeze(1), how) for part in torch.split(values, size, 1)]
    weight, mean, var = (torch.cat([getattr(p.components, n) for p in parts])[..., 0] for n in Components._fields)
    found = (torch.cat([getattr(part, name) for part in parts]) for name in ("bound", "steps", "converged"))
    log_likelihood, taken, converged = found
    return GaussianMixture(weight, mean, var, log_likelihood, len(values), taken, converged)


def fit_vectors(
    x: Tensor,
    components: int = 3,
    *,
    restarts: int = 5,
    steps: int = 500,
    tolerance: float = 1e-6,
    floor: float = 1e-6,
    min_weight: float = 1e-3,
    generator: torch.Generator | None = None,
) -> GaussianMixture:
    """Fit one mixture with diagonal covariances to vectors, by EM on these; else as :func:`fit`.

    Args:
        x: (N, D).
        components: K.
        restarts: as there, in units of each dimension's standard deviation.
        steps: of EM, at most.
        tolerance: of the log-likelihood's rise in one step, in nats a vector.
        floor: smallest variance of a component, in that of the dimension.
        min_weight: components of a smaller weight are dropped.
        generator: of the starts; by default a fresh one with seed 0.

    Raises:
        ValueError: the shape or a setting is impossible, or a dimension is constant or not finite.
    """
    values = _matrix(x)
    if not bool(values.isfinite().all() & (values.amax(0) > values.amin(0)).all()):
        raise ValueError(
            "vectors need finite values that vary in each dimension; some do not: a density would be infinite; leave "
            "such dimensions out"
        )
    how = Search(components, None, restarts, steps, tolerance, floor, min_weight, _or_new(generator))
    found = search(values.T.contiguous().unsqueeze(0), how)
    weight, mean, var = (part[0] for part in found.components)
    order = weight[:, 0].argsort(descending=True)
    numbers = (found.bound[0], len(values), found.steps[0], found.converged[0])
    return GaussianMixture(weight[order, 0], mean[order], var[order], *numbers)


def _or_new(generator: torch.Generator | None) -> torch.Generator:
    return generator or torch.Generator().manual_seed(0)


def _matrix(x: Tensor) -> Tensor:
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"a mixture needs values of shape (N, C); got {tuple(x.shape)}; flatten samples and positions")
    return double(x)
