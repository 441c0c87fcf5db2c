"""Fisher vectors of Gaussians and of their mixtures; batch norm computes one block of the former."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from normlens.information.gaussian_mixture import GaussianMixture
from normlens.information.mixture_search import double

__all__ = ["FisherVector", "GaussianBlocks", "fim_rel_err", "gaussian", "improved", "mixture"]


class GaussianBlocks(NamedTuple):
    """The Fisher vector of each value under the Gaussian of its channel: ``mu`` and ``sigma``, (N, C) each."""

    mu: Tensor
    sigma: Tensor


class FisherVector(NamedTuple):
    """The Fisher vector of each value or vector, by blocks.

    For channels all blocks are (N, C, K); for vectors ``pi`` is (N, K), ``mu`` and ``sigma`` are (N, K, D).
    """

    pi: Tensor
    mu: Tensor
    sigma: Tensor

    @property
    def flat(self) -> Tensor:
        """The blocks side by side, [pi, mu, sigma]: (N, C, 3K), or (N, K + 2KD) for vectors, component by component."""
        start = self.pi.ndim - 1
        return torch.cat([self.pi, self.mu.flatten(start), self.sigma.flatten(start)], -1)

    def pooled(self) -> Tensor:
        r"""Return the Fisher vector of all N together, :math:`\frac1N \sum_i`: (C, 3K), or (K + 2KD,).

        Sánchez et al. divide by N, as this does; the unit Fisher information of a set takes :math:`1/\sqrt N` instead:
        multiply by :math:`\sqrt N`. The improved form is the same for both.
        """
        return self.flat.mean(0)


def gaussian(x: Tensor, *, eps: float = 0.0) -> GaussianBlocks:
    r"""Return the Fisher vector of each value under the Gaussian fitted to its channel.

    .. math:: G_\mu(x) = \frac{x - \mu}{\sigma}, \qquad G_\sigma(x) = \frac{1}{\sqrt 2}\Big[\Big(\frac{x -
        \mu}{\sigma}\Big)^2 - 1\Big],

    :math:`F^{-1/2} \nabla \ln p` with the exact Fisher information :math:`\mathrm{diag}(1/\sigma^2, 2/\sigma^2)`;
    :math:`\sigma^2` is the biased variance plus ``eps``. The second block is the same for the parameters
    :math:`\sigma`, :math:`\sigma^2` and :math:`\ln\sigma`. The first is the output of batch norm in train mode without
    its affine map: batch norm is the *mean block alone*. Over the values, both blocks have mean 0 (for eps = 0), the
    mean of :math:`G_\mu^2` is 1 and that of :math:`G_\sigma^2` is :math:`(\mathrm{kurt} - 1)/2`: 1 for a Gaussian.

    A constant channel has nan (0/0) for ``eps=0``. Source: Kalayeh and Shah, arXiv:1806.02892, who call batch norm
    identical to the Fisher vector; the second block is what it leaves out.

    Args:
        x: (N, C).
        eps: added to the variance.

    Raises:
        ValueError: another shape.
    """
    if x.ndim != 2 or not len(x):
        raise ValueError(f"a Fisher vector needs values (N, C), N at least 1; got {tuple(x.shape)}; flatten positions")
    values = double(x)
    centered = values - values.mean(0)
    mu = centered / (centered.square().mean(0) + eps).sqrt()
    return GaussianBlocks(mu, (mu.square() - 1) / math.sqrt(2))


def mixture(x: Tensor, model: GaussianMixture) -> FisherVector:
    r"""Return the Fisher vector of each value under a mixture, normalized by the diagonal approximation.

    With the posterior :math:`\gamma_k(x)` and :math:`z_k = (x - \mu_k)/\sigma_k`,

    .. math:: G_{\lambda_k} = \frac{\gamma_k - \lambda_k}{\sqrt{\lambda_k}}, \qquad G_{\mu_k} =
        \frac{\gamma_k}{\sqrt{\lambda_k}} z_k, \qquad G_{\sigma_k} = \frac{\gamma_k}{\sqrt{2\lambda_k}} (z_k^2 - 1).

    The normalization takes posteriors for hard: :func:`fim_rel_err` says how wrong that is. With one component it is
    :func:`gaussian`. Components of weight 0 have zeros. ``skimage.feature.fisher_vector`` is ``pooled()`` of it with
    the *opposite sign of the sigma block*; VLFeat and the gradient of the log-likelihood have the sign used here.

    Source: Sánchez, Perronnin, Mensink and Verbeek, IJCV 105 (2013), eq. 16 to 18, from memory.

    Args:
        x: (N, C) for a model of channels, (N, D) for one of vectors.
        model: see :mod:`normlens.information.gaussian_mixture`.

    Raises:
        ValueError: a shape that the model does not know.
    """
    gamma, weight = model.posterior(x), model.weights
    root = torch.where(weight > 0, weight, 1.0).sqrt()
    values = double(x).unsqueeze(2 if model.by_channel else 1)
    z = (values - model.means) / model.variances.sqrt()
    share = gamma / root if model.by_channel else (gamma / root).unsqueeze(2)
    return FisherVector((gamma - weight) / root, share * z, share * (z.square() - 1) / math.sqrt(2))


def improved(vectors: Tensor, *, alpha: float = 0.5) -> Tensor:
    r"""Return :math:`\mathrm{sign}(v) |v|^\alpha`, scaled to length 1 along the last dimension; zeros stay zeros.

    Source: Perronnin, Sánchez and Mensink, ECCV 2010.

    Args:
        vectors: (..., P), as :meth:`FisherVector.pooled` returns them.
        alpha: of the power, from 0 to 1.

    Raises:
        ValueError: ``alpha`` is out of its range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"the power normalization needs alpha from 0 to 1; got {alpha}; 0.5 is usual")
    powered = vectors.sign() * vectors.abs() ** alpha
    length = powered.norm(dim=-1, keepdim=True)
    return powered / torch.where(length > 0, length, 1.0)


class RelativeError(NamedTuple):
    """The error of the diagonal approximation and its standard error, (C,) each; scalars for vectors."""

    value: Tensor
    error: Tensor


def fim_rel_err(
    model: GaussianMixture, *, draws: int = 256, repeats: int = 8, generator: torch.Generator | None = None
) -> RelativeError:
    r"""Return how far the Fisher information of a mixture is from the diagonal one that normalizes its Fisher vector.

    .. math:: \epsilon = \frac{\|E_p[G G^\top] - T\|_F}{\|T\|_F}

    over the mu and sigma blocks G of :func:`mixture`; were posteriors hard, the covariance of G would be the identity
    T. 0 means that the approximation is exact. By Monte Carlo: of each component ``draws`` values by Latin hypercubes,
    weighted by :math:`\lambda_k`. The square of the norm comes from pairs of different ``repeats``, so that their noise
    does not add to it; below 0 it is cut off, and the standard error is that of the repeats by the delta method.

    Cost: ``repeats * K * draws`` values of the Fisher vector. Source: ours; the approximation is that of Sánchez et al.

    Args:
        model: its components of weight 0 are left out.
        draws: values for each component and repeat.
        repeats: independent ones, at least 3.
        generator: of the draws; by default a fresh one with seed 0.

    Raises:
        ValueError: ``repeats`` is below 3 or ``draws`` below 1.
    """
    if repeats < 3 or draws < 1:
        raise ValueError(f"fim_rel_err needs 3 repeats and 1 draw at least; got {repeats} and {draws}")
    generator = generator or torch.Generator().manual_seed(0)
    off = torch.stack([_deviation(model, _normal(draws, model, generator)) for _ in range(repeats)])
    size = (model.weights > 0).sum(-1) * (2 if model.by_channel else 2 * model.means.shape[1])
    total = off.sum(0)
    pairs = (off * total).sum((-1, -2)) - off.square().sum((-1, -2))  # each repeat with all the others
    each = pairs / (repeats - 1)
    square, spread = each.mean(0), 2 * each.std(0) / math.sqrt(repeats)  # each repeat takes part in both factors
    value = (square.clamp_min(0) / size).sqrt()
    return RelativeError(value, torch.where(value > 0, spread / (2 * value * size), (spread / size).sqrt()))


def _normal(draws: int, model: GaussianMixture, generator: torch.Generator) -> Tensor:
    """Return normal numbers (K, draws, P) that fill ``draws`` equally likely slices of each dimension with one each."""
    _, mean, _ = model.grouped
    shape = (mean.shape[1], draws, mean.shape[2])
    order = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).argsort(dim=1)
    within = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    normal: Tensor = torch.special.ndtri((order + within) / draws)
    return normal.to(mean.device)


def _deviation(model: GaussianMixture, normal: Tensor) -> Tensor:
    """Return E[G G^T] - T, (C, 2K, 2K), or (2KD, 2KD) for vectors."""
    weight, mean, var = model.grouped
    x = (mean.unsqueeze(2) + var.sqrt().unsqueeze(2) * normal).flatten(1, 2)  # (G, K * draws, P)
    blocks = mixture(x[..., 0].T if model.by_channel else x[0], model)
    parts = [block if model.by_channel else block.flatten(1).unsqueeze(1) for block in blocks[1:]]
    vectors = torch.cat(parts, -1).transpose(0, 1)
    share = (weight / normal.shape[1]).expand(-1, -1, normal.shape[1]).flatten(1)
    found = (vectors * share.unsqueeze(2)).mT @ vectors
    alive = (weight > 0).expand(-1, -1, mean.shape[2]).flatten(1).repeat(1, 2)
    off = found - torch.diag_embed(alive.to(found.dtype))
    return off if model.by_channel else off[0]
