"""How well conditioned a layer's input is: as it comes, centered, and batch-normalized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normlens.curvature.operator import LinearOperator

__all__ = ["ActivationCondition", "BNPRoot", "activation_condition", "bnp_root"]


@dataclass(frozen=True)
class ActivationCondition:
    r"""Condition numbers of the matrices that stand in the Hessian of a neuron, :math:`\hat H^\top S \hat H`.

    Attributes:
        raw: kappa of [e, H]: the inputs with a column of ones for the bias.
        centered: kappa of [e, H - e mu'].
        normalized: kappa of [e, (H - e mu') / sigma], the batch-normalized inputs.
        rank: of [e, H]; below m + 1 each kappa is a pseudo condition number, over the nonzero singular values.
        singular_values: of the three matrices, (3, min(N, m + 1)) in that order, descending, float64.
        samples: N.
        features: m.
        constant: how many features have no variance; in ``normalized`` they are columns of zeros.
    """

    raw: float
    centered: float
    normalized: float
    rank: int
    singular_values: Tensor
    samples: int
    features: int
    constant: int


class BNPRoot(LinearOperator):
    r"""The preconditioner :math:`P = UD/q` of one neuron, on (bias, weights); not symmetric.

    ``P @ v`` maps normalized to plain coordinates; :meth:`transposed` gives :math:`P^\top g`, and
    :meth:`step` the preconditioned gradient :math:`PP^\top g`.

    Args:
        mean: (m,).
        deviation: (m,), positive.
        q: positive.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, q: float) -> None:
        super().__init__(len(mean) + 1, mean.dtype, mean.device)
        self._mean, self._deviation, self._q = mean, deviation, q

    @property
    def deviation(self) -> Tensor:
        """The regularized standard deviations, (m,)."""
        return self._deviation

    def matvec(self, v: Tensor) -> Tensor:
        """Return P v."""
        weights = v[1:] / self._deviation
        return torch.cat([v[:1] - (self._mean @ weights)[None], weights]) / self._q

    def transposed(self, g: Tensor) -> Tensor:
        """Return P' g for ``(m + 1,)``."""
        g = g.to(self.device, self.dtype)
        return torch.cat([g[:1], (g[1:] - self._mean * g[0]) / self._deviation]) / self._q

    def step(self, g: Tensor) -> Tensor:
        """Return P P' g for ``(m + 1,)``: the gradient that batch normalization would follow."""
        return self.matvec(self.transposed(g)).to(g)

    def dense(self) -> Tensor:
        """Return P itself, (m + 1, m + 1), which is upper triangular."""
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)


def activation_condition(inputs: Tensor) -> ActivationCondition:
    r"""Return the condition numbers of a layer's input before and after centering and batch normalization.

    .. math:: \hat H = [e, H], \quad \hat HU = [e, H - e\mu^\top], \quad
              \hat G = \hat HUD = [e, (H - e\mu^\top)\operatorname{diag}(\sigma)^{-1}]

    Theorem: :math:`\kappa(\hat HU) \le \kappa(\hat H)`, and :math:`\kappa(\hat G) \le \sqrt{m+1}\,\kappa(\hat HUD_0)`
    for every diagonal :math:`D_0`. The condition of the neuron's Hessian is at most :math:`\kappa(S)\kappa(\hat H)^2`,
    while no sample's loss depends on the neuron's output for another sample (no batch norm in training mode above it).

    Args:
        inputs: ``(N, m)``, rows are samples; of a convolution, its patches.

    Raises:
        ValueError: the shape is another one, there is no sample, or a value is not finite.

    Source: Lange, Helfrich, Ye, JMLR 23(72), 2022, section 3.
    """
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise ValueError(
            f"inputs must be (N, m) with a sample and a feature; got {tuple(inputs.shape)}: flatten patches"
        )
    h = inputs.detach().double()
    if not bool(h.isfinite().all()):
        raise ValueError(f"inputs must be finite; {int((~h.isfinite()).sum())} of {h.numel()} values are not")
    ones, centered = torch.ones_like(h[:, :1]), h - h.mean(0)
    deviation = centered.square().mean(0).sqrt()
    # A constant feature keeps a spread of a few roundings of its mean; dividing by it would make noise of unit size.
    constant = deviation <= 4 * torch.finfo(h.dtype).eps * len(h) ** 0.5 * h.abs().amax(0)
    centered = centered.masked_fill(constant, 0.0)
    normalized = centered / deviation.masked_fill(constant, 1.0)
    spectra = [torch.linalg.svdvals(torch.cat([ones, part], 1)) for part in (h, centered, normalized)]
    raw_kappa, centered_kappa, normalized_kappa = (_pseudo_condition(values, h.shape) for values in spectra)
    return ActivationCondition(
        raw=raw_kappa,
        centered=centered_kappa,
        normalized=normalized_kappa,
        rank=len(_nonzero(spectra[0], h.shape)),
        singular_values=torch.stack(spectra).cpu(),
        samples=h.shape[0],
        features=h.shape[1],
        constant=int(constant.sum()),
    )


def bnp_root(
    mean: Tensor, variance: Tensor, *, q: float = 1.0, relative_floor: float = 0.0, floor: float = 0.0
) -> BNPRoot:
    r"""Return the matrix by which batch normalization preconditions a neuron's gradient.

    .. math:: P = \tfrac1q UD, \quad U = \begin{pmatrix}1 & -\mu^\top\\0 & I\end{pmatrix}, \quad
              D = \operatorname{diag}(1, 1/\tilde\sigma), \quad
              \tilde\sigma^2 = \sigma^2 + \varepsilon_1 \max_j \sigma_j^2 + \varepsilon_2

    Args:
        mean: mu, (m,), of the layer's inputs.
        variance: sigma^2, (m,), biased.
        q: the scale, positive.
        relative_floor: epsilon_1.
        floor: epsilon_2.

    Raises:
        ValueError: the shapes differ, q is not positive, or a variance is not positive after the floors.

    Source: Lange, Helfrich, Ye, JMLR 23(72), 2022, section 3 and algorithm 1.
    """
    if mean.ndim != 1 or mean.shape != variance.shape or len(mean) == 0:
        raise ValueError(f"mean and variance must both be (m,); got {tuple(mean.shape)} and {tuple(variance.shape)}")
    if not q > 0:
        raise ValueError(f"q must be positive; got {q}")
    regularized = variance + relative_floor * variance.max() + floor
    if not bool((regularized > 0).all()):
        raise ValueError(
            f"variances must be positive after the floors; {int((~(regularized > 0)).sum())} of {len(mean)} are not: "
            "give relative_floor or floor for constant inputs"
        )
    return BNPRoot(mean, regularized.sqrt(), q)


def _nonzero(values: Tensor, shape: torch.Size) -> Tensor:
    return values[values > max(shape[0], shape[1] + 1) * torch.finfo(values.dtype).eps * values[0]]


def _pseudo_condition(values: Tensor, shape: torch.Size) -> float:
    return float(values[0] / _nonzero(values, shape)[-1])
