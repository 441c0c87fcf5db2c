"""Density: how the eigenvalues of a symmetric matrix are distributed, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from normlens.curvature.operator import LinearOperator
from normlens.curvature.tridiagonal import tridiagonalize
from normlens.estimate import Estimate

__all__ = ["SpectralDensity", "spectral_density"]

_UNDECIDED = 0.1  # the largest share of the eigenvalues that may lie on either side of an edge that is answered for


@dataclass(frozen=True)
class SpectralDensity:
    r"""A quadrature of the eigenvalue distribution, and its smoothed density. All tensors are float64 on the CPU.

    Each probe gives nodes :math:`\theta_1 < \dots < \theta_m` (Ritz values) and weights :math:`w_k` that sum to one.
    The share of eigenvalues up to x is taken as :math:`S_j = \sum_{k \le j} w_k`, where
    :math:`\theta_j \le x < \theta_{j+1}`.
    Of the distribution that the probe sees this is known to within the smaller of two bounds: Chebyshev, Markov and
    Stieltjes' :math:`S_{j-1} \le F(x) \le S_{j+1}`, and :math:`2\sqrt{\min(S_j, 1 - S_j)}\,E + E^2` with
    :math:`E = \sum_k \sqrt{w_k} \min(1, r_k / |x - \theta_k|)`, :math:`r_k` the residual of the Ritz pair.

    Attributes:
        grid: (points,), eigenvalues at which the density stands.
        density: (points,), mean over the probes of Gaussians of standard deviation ``width`` at the Ritz values.
        stderr: (points,), spread over the probes / sqrt(probes); nan for one probe.
        ritz: (probes, steps), ascending; where a Krylov space closed early the rest repeats its last value.
        weights: (probes, steps), of the Ritz values; zero for the repeated ones.
        residuals: (probes, steps), :math:`\|A y - \theta y\|`, at least the rounding of the operator's products.
        resolution: how near to zero eigenvalues are told apart: the smallest :math:`x` at which the bounds above leave
            at most 10 % of the eigenvalues undecided at both x and -x; never below the rounding of the products,
            :math:`10\,\varepsilon\,\max|\theta|` (in float32 about :math:`10^{-6} \lambda_{max}`). It is set by the
            spacing and the weights of the Ritz values next to zero, not by ``width``: shares are not smoothed.
        width: of the Gaussians.
        cost: matrix-vector products spent.
    """

    grid: Tensor
    density: Tensor
    stderr: Tensor
    ritz: Tensor
    weights: Tensor
    residuals: Tensor
    resolution: float
    width: float
    cost: int

    @property
    def moments(self) -> tuple[Estimate, ...]:
        r"""Estimates of :math:`\mathrm{tr}(A^j)/n` for j = 0 ... 4, as far as 2 steps - 1: there only sampling errs."""
        degrees = range(min(4, 2 * self.ritz.shape[1] - 1) + 1)
        return tuple(self._estimate((self.weights * self.ritz**j).sum(1)) for j in degrees)

    def fraction(self, low: float, high: float) -> Estimate:
        r"""Return the share of eigenvalues in :math:`(low, high]`; either may be infinite.

        Its error is the standard error over the probes and the bounds of the quadrature at both edges, added in
        quadrature. Where the method cannot know, the value is nan and ``converged`` False; :meth:`refusal` says why.

        Raises:
            ValueError: ``low`` is not below ``high``.
        """
        if self.refusal(low, high):
            return Estimate(math.nan, math.nan, self.cost, converged=False)
        below, below_bound = _distribution(self.ritz, self.weights, self.residuals, low)
        upto, upto_bound = _distribution(self.ritz, self.weights, self.residuals, high)
        estimate = self._estimate(upto - below)
        bound = float(below_bound.mean() + upto_bound.mean())
        return Estimate(estimate.value, math.hypot(estimate.error, bound), self.cost, converged=True)

    def refusal(self, low: float, high: float) -> str:
        """Say why :meth:`fraction` cannot answer for an interval; empty where it can.

        Raises:
            ValueError: ``low`` is not below ``high``.
        """
        if not low < high:
            raise ValueError(f"an interval needs low < high; got ({low}, {high}]")
        advice = "take more steps, or ask for a wider interval"
        if high - low < self.resolution:
            return f"the interval is {high - low:.3g} wide, the resolution is {self.resolution:.3g}: {advice}"
        for edge in (low, high):
            if abs(edge) < self.resolution:
                return f"the edge {edge:.3g} is within the resolution {self.resolution:.3g} of zero: {advice}"
            undecided = float(_distribution(self.ritz, self.weights, self.residuals, edge)[1].mean())
            if undecided > _UNDECIDED:
                return f"{undecided:.0%} of the eigenvalues may lie on either side of the edge {edge:.3g}: {advice}"
        return ""

    def quantile(self, q: float) -> Estimate:
        r"""Return the eigenvalue below which a share q of them lies, the smallest Ritz value with :math:`S_j \ge q`.

        Its error joins the standard error over the probes with half the distance between the neighbors of that Ritz
        value, which enclose the quantile of what the probe sees.

        Raises:
            ValueError: q is not within [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile needs a share from 0 to 1; got {q}")
        tolerance = 8 * torch.finfo(torch.float64).eps * self.ritz.shape[1]
        index = (self.weights.cumsum(1) < q - tolerance).sum(1, keepdim=True).clamp(max=self.ritz.shape[1] - 1)
        last = self.ritz.shape[1] - 1
        gap = self.ritz.gather(1, (index + 1).clamp(max=last)) - self.ritz.gather(1, (index - 1).clamp(min=0))
        half = torch.minimum(gap / 2, self.residuals.amax(1, keepdim=True))  # all found: no gap to be unsure about
        estimate = self._estimate(self.ritz.gather(1, index)[:, 0])
        return Estimate(estimate.value, math.hypot(estimate.error, float(half.mean())), self.cost)

    def _estimate(self, samples: Tensor) -> Estimate:
        return Estimate(float(samples.mean()), float(_standard_error(samples)), self.cost)


def spectral_density(
    operator: LinearOperator,
    *,
    steps: int = 80,
    probes: int = 8,
    grid: Tensor | None = None,
    width: float | None = None,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    r"""Estimate the distribution of the eigenvalues by stochastic Lanczos quadrature with full reorthogonalization.

    .. math:: \frac1n \mathrm{tr} f(A) = \mathbb{E}\, v^\top f(A) v \approx
              \frac1p \sum_{l=1}^{p} \sum_{k=1}^{m} w_k^{(l)} f(\theta_k^{(l)}), \qquad w_k = (e_1^\top s_k)^2

    v is uniform on the sphere, :math:`(\theta_k, s_k)` the eigenpairs of the m x m Lanczos matrix begun with v. With
    ``steps`` = n all distinct eigenvalues are reproduced. Memory: (steps, n) in float64.

    Args:
        operator: A.
        steps: m, products per probe.
        probes: p.
        grid: eigenvalues at which to give the density; by default 512 over the Ritz values and four widths beyond.
        width: standard deviation of the Gaussians; by default the mean spacing, (largest - smallest Ritz value) / m.
        progress: show a bar over the probes.
        generator: of the probes; by default a fresh one with seed 0.

    Returns:
        Ritz values, weights and the density, with errors and the resolution.

    Raises:
        ValueError: ``steps`` or ``probes`` is below 1, ``width`` is not positive, or a product is not finite.

    Source: Ghorbani, Krishnan and Xiao (ICML 2019), algorithm 1; Ubaru, Chen and Saad (SIMAX 2017); the bounds: Szegő,
    "Orthogonal Polynomials", theorem 3.41.1.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if steps < 1 or probes < 1:
        raise ValueError(f"steps and probes must be at least 1; got steps={steps}, probes={probes}")
    if width is not None and not width > 0:
        raise ValueError(f"width must be positive, or None for the mean spacing; got {width}")
    count = min(steps, operator.shape[0])
    bar = tqdm(range(probes), desc="spectral density", unit="probe", disable=not progress)
    runs = [tridiagonalize(operator, _start(operator.shape[0], generator), count) for _ in bar]
    rules = [_quadrature(alphas, betas, count) for alphas, betas in runs]
    ritz, weights, residuals = (torch.stack(part) for part in zip(*rules, strict=True))
    floor = 10 * torch.finfo(operator.dtype).eps * float(ritz.abs().max())
    residuals = residuals.clamp(min=floor)
    chosen = width or float(ritz.max() - ritz.min()) / count or floor or 1.0  # the last two: A = cI and A = 0
    if grid is None:
        grid = torch.linspace(float(ritz.min()) - 4 * chosen, float(ritz.max()) + 4 * chosen, 512, dtype=torch.float64)
    density, stderr = _smooth(grid.double().cpu(), ritz, weights, chosen)
    resolution = _resolution(ritz, weights, residuals, floor)
    cost = sum(len(alphas) for alphas, _ in runs)
    return SpectralDensity(grid.double().cpu(), density, stderr, ritz, weights, residuals, resolution, chosen, cost)


def _start(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)


def _quadrature(alphas: Tensor, betas: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Ritz values, weights and residuals, filled up to ``count`` by the last one with weight zero."""
    ritz, vectors = torch.linalg.eigh(torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1))
    missing = count - len(ritz)
    fill = (ritz[-1:].expand(missing), torch.zeros(missing, dtype=torch.float64))
    residuals = betas[-1] * vectors[-1].abs()
    return (
        torch.cat([ritz, fill[0]]),
        torch.cat([vectors[0].square(), fill[1]]),
        torch.cat([residuals, fill[1]]),
    )


def _distribution(ritz: Tensor, weights: Tensor, residuals: Tensor, x: float) -> tuple[Tensor, Tensor]:
    """Return the share of eigenvalues up to x by each probe, and how far it may be off, both (probes,)."""
    sums = torch.nn.functional.pad(weights.cumsum(1), (1, 0))
    index = (ritz <= x).sum(1, keepdim=True)
    share = sums.gather(1, index)
    bracket = torch.maximum(
        sums.gather(1, (index + 1).clamp(max=ritz.shape[1])) - share,
        share - sums.gather(1, (index - 1).clamp(min=0)),
    )
    leak = (weights.sqrt() * (residuals / (x - ritz).abs().clamp(min=1e-300)).clamp(max=1)).sum(1, keepdim=True)
    return share[:, 0], torch.minimum(
        bracket, 2 * torch.minimum(share, 1 - share).clamp(min=0).sqrt() * leak + leak.square()
    )[:, 0]


def _resolution(ritz: Tensor, weights: Tensor, residuals: Tensor, floor: float) -> float:
    """Walk outward from zero until both sides are decided; the whole range where they nowhere are."""
    largest = float(ritz.abs().max())
    if largest == 0:
        return 0.0
    for x in torch.logspace(math.log10(floor), math.log10(largest), 200, dtype=torch.float64).tolist():
        sides = [float(_distribution(ritz, weights, residuals, edge)[1].mean()) for edge in (x, -x)]
        if max(sides) <= _UNDECIDED:
            return float(x)
    return largest


def _smooth(grid: Tensor, ritz: Tensor, weights: Tensor, width: float) -> tuple[Tensor, Tensor]:
    densities = torch.stack(
        [
            torch.exp(-(((grid[:, None] - nodes) / width) ** 2) / 2) @ mass / (width * math.sqrt(2 * math.pi))
            for nodes, mass in zip(ritz, weights, strict=True)
        ]
    )
    return densities.mean(0), _standard_error(densities)


def _standard_error(samples: Tensor) -> Tensor:
    if len(samples) < 2:  # one probe has no spread to show
        return torch.full_like(samples[0], math.nan)
    return samples.std(0) / math.sqrt(len(samples))
