"""Weight standardization: filters of mean zero and variance one."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from normlens.nn.functional import centered_moments
from normlens.nn.parametrize.base import Reparametrization, lengths

__all__ = ["weight_standardization"]

Variant = Literal["bcn", "ws", "tf"]


class WeightStandardization(Reparametrization):
    """The map ``w = (v - mean) / std`` of :func:`weight_standardization`.

    Shapes: those of the weight.

    Source: Qiao, Wang, Liu, Shen and Yuille, 2019, arXiv:1903.10520.

    Args:
        dim: the dimension that counts the filters.
        variant: which standard deviation, see :func:`weight_standardization`.
        eps: added where the variant adds it.

    Raises:
        ValueError: an unknown variant.
    """

    def __init__(self, dim: int = 0, *, variant: Variant = "ws", eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)
        if variant not in get_args(Variant):
            raise ValueError(f"variant needs to be one of {get_args(Variant)}; got {variant!r}; leave it out for 'ws'")
        self.variant: Variant = variant

    def forward(self, v: Tensor) -> Tensor:
        """Standardize each filter."""
        centered, (_, var) = centered_moments(v, self.fan_in_dims(v))
        return (centered / self._spread(var, self.fan_in(v))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take ``weight`` as ``v``, which returns it where it is standardized.

        Args:
            weight: becomes ``v``.

        Raises:
            ValueError: a filter of one value throughout, where the standard deviation is 0.
        """
        dims = self.fan_in_dims(weight)
        if self.variant != "bcn" or self.eps == 0:
            centered, _ = centered_moments(weight, dims)
            self.check_directions(lengths(centered, dims), lengths(weight, dims), what="vary")
        return weight.detach().clone()

    def extra_repr(self) -> str:
        """List the settings."""
        return f"{super().extra_repr()}, variant={self.variant!r}, eps={self.eps}"

    def _spread(self, var: Tensor, count: int) -> Tensor:
        if self.variant == "tf":
            return var.sqrt() + self.eps
        unbiased = var * (count / (count - 1))
        return (unbiased + self.eps).sqrt() if self.variant == "bcn" else unbiased.sqrt() + self.eps


def weight_standardization(
    module: nn.Module,
    name: str = "weight",
    dim: int = 0,
    variant: Variant = "ws",
    eps: float = 1e-5,
) -> nn.Module:
    """Standardize each filter before every use, and return the module.

    ``w = (v - mean) / std``, mean and standard deviation over all of a filter. With ``g = dL/dw`` the gradient is, for
    the biased ``std`` and ``eps=0``, ``dL/dv = (g - mean(g) - w mean(g w)) / std``: it sums to 0 and is orthogonal to
    ``v - mean``. Three forms are in use:

    * ``"ws"``: ``std = sqrt(sum (v - mean)^2 / (d - 1)) + eps``, the authors' first code;
    * ``"bcn"``: ``std = sqrt(sum (v - mean)^2 / (d - 1) + eps)``, their code for batch-channel normalization;
    * ``"tf"``: ``std = sqrt(sum (v - mean)^2 / d) + eps``, as in TensorFlow.

    Registering keeps the weight (but for ``eps``) only where its filters are standardized: others become so, and an
    output of ``d`` inputs of variance 1 then has variance ``d``. Hence it is for layers before a normalization.

    Shapes: those of the weight.

    Valid under every derivative mode. At ``eps=0`` and with the unbiased ``std`` it is :func:`centered_weight_norm` of
    scale ``sqrt(d - 1)``.

    Source: Qiao, Wang, Liu, Shen and Yuille, 2019, arXiv:1903.10520; "bcn" of arXiv:1911.09738. The paper divides by
    the biased standard deviation, its published codes by the unbiased one.

    Args:
        module: holds the weight.
        name: of the parameter.
        dim: the dimension that counts the filters: 0 for linear maps and convolutions, 1 for transposed ones.
        variant: which standard deviation.
        eps: added to the standard deviation, or to the variance for ``"bcn"``.

    Raises:
        FanInError: filters of a single entry (a ValueError).
        ValueError: no such parameter, fewer than two dimensions, an unknown variant, a negative eps, or a filter of one
            value throughout (which "bcn" takes for zeros).
    """
    return WeightStandardization(dim, variant=variant, eps=eps).register(module, name, least_fan_in=2)
