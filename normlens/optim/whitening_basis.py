"""The coordinates of a layer in which its inputs are white: parameters, gradients and velocities there and back."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from normlens.optim.input_statistics import InputMoments

__all__ = ["Whitening", "WhiteningBasis", "whitening_basis"]

Whitening: TypeAlias = Literal["pca", "zca"]
"""Along the eigenvectors of the covariance, or turned back to the axes of the inputs."""


class WhiteningBasis(NamedTuple):
    r"""A layer :math:`Wx + b = V\,U(x - c) + d`: its weight and bias in coordinates (V, d) of whitened inputs.

    .. math:: W = VU, \quad b = d - Wc

    Of a convolution U and c act on the channels of a group, alike at every place of the kernel, and Wc sums over the
    kernel. The map is linear and one to one whatever the padding.

    Attributes:
        center: c, (groups, channels / groups).
        whitening: U, (groups, channels / groups, channels / groups).
        inverse: of U.
    """

    center: Tensor
    whitening: Tensor
    inverse: Tensor

    def enter(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return (V, d) of (W, b), of parameters as of their velocities; b is None where c is 0.

        Args:
            weight: (out, channels / groups, *kernel).
            bias: (out,).
        """
        return _times(weight, self.inverse), None if bias is None else bias + self._at_center(weight)

    def leave(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return (W, b) of (V, d): the inverse of :meth:`enter`.

        Args:
            weight: V.
            bias: d.
        """
        weight = _times(weight, self.whitening)
        return weight, None if bias is None else bias - self._at_center(weight)

    def gradient(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        r"""Return the gradient with respect to V, :math:`(G_W - G_b c^\top)U^\top`; that of d is that of b.

        Args:
            weight: the gradient with respect to W.
            bias: that with respect to b.
        """
        if bias is not None:
            weight = weight - bias.view(-1, *(1,) * (weight.dim() - 1)) * self._of_weights(weight)
        return _times(weight, self.whitening.mT)

    def _at_center(self, weight: Tensor) -> Tensor:
        return (weight * self._of_weights(weight)).flatten(1).sum(1)

    def _of_weights(self, weight: Tensor) -> Tensor:
        """View c such that it broadcasts against the weight."""
        center = self.center.to(weight)
        if len(center) > 1:
            center = center.repeat_interleave(len(weight) // len(center), 0)
        return center.view(*center.shape, *(1,) * (weight.dim() - 2))


def whitening_basis(moments: InputMoments, *, eps: float, whitening: Whitening, centering: bool) -> WhiteningBasis:
    r"""Return the basis in which inputs of these moments are white, but for ``eps``.

    .. math:: U = (\Lambda + \epsilon)^{-1/2}E^\top \text{ (pca)}, \quad
              U = E(\Lambda + \epsilon)^{-1/2}E^\top \text{ (zca)}, \quad \Sigma = E\Lambda E^\top

    Computed in float64; in the dtype of the moments.

    Args:
        moments: with covariances.
        eps: added to the eigenvalues, in units of the inputs squared.
        whitening: pca or zca.
        centering: False for c = 0.
    """
    covariance = moments.spread
    assert covariance is not None
    values, vectors = torch.linalg.eigh(covariance.double())
    deviations = (values.clamp(min=0) + eps).sqrt().unsqueeze(-1)
    back = vectors if whitening == "zca" else torch.eye(len(values[0])).to(vectors)
    into = back @ (vectors.mT / deviations)
    inverse = (vectors * deviations.mT) @ back.mT
    center = moments.mean if centering else torch.zeros_like(moments.mean)
    return WhiteningBasis(center, into.to(center), inverse.to(center))


def _times(weight: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels of a weight (out, channels, *kernel) from the right by a matrix for each group."""
    groups, channels = matrix.shape[:2]
    rows = weight.reshape(groups, len(weight) // groups, channels, -1).transpose(2, 3)
    product = rows.reshape(groups, -1, channels) @ matrix.to(weight)
    return product.view(rows.shape).transpose(2, 3).reshape(weight.shape)
