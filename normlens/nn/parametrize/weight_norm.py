"""Weight normalization: the length and the direction of each filter as two parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlens.nn.parametrize.base import Reparametrization, lengths

__all__ = ["weight_norm"]


class WeightNorm(Reparametrization):
    """The map ``w = g v / |v|`` of :func:`weight_norm`, from ``g`` and ``v``.

    Shapes: ``g`` is 1 in every dimension but ``dim``; ``v`` and ``w`` are the weight's.

    Source: Salimans and Kingma, NeurIPS 2016, arXiv:1602.07868.

    Args:
        dim: the dimension that counts the filters.
    """

    def __init__(self, dim: int = 0) -> None:
        super().__init__(dim)

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Scale each filter of ``v`` to the length ``|g|``."""
        # the ratio first: it is exactly one where g is the length of v, as after registering
        return (v * (g / lengths(v, self.fan_in_dims(v)))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Take ``weight`` apart into the lengths of its filters and itself.

        Args:
            weight: becomes ``v``.

        Raises:
            ValueError: a filter of zeros, which has no direction.
        """
        g = lengths(weight, self.fan_in_dims(weight))
        self.check_directions(g, g, what="have a direction")
        return g.to(weight.dtype), weight.detach().clone()


def weight_norm(module: nn.Module, name: str = "weight", dim: int = 0) -> nn.Module:
    """Learn the length ``g`` and the direction ``v`` of each filter apart, and return the module.

    ``w = g v / |v|``, ``|v|`` over all of a filter. Its gradient is ``dL/dg = v . dL/dw / |v|`` and
    ``dL/dv = (g / |v|) (I - w w' / |w|^2) dL/dw``, orthogonal to ``v``. Hence plain SGD only lengthens ``v``:
    ``|v'|^2 = |v|^2 + |step|^2``, and the effective learning rate falls as ``1 / |v|^2``.

    Registering keeps the weight, bit by bit in float32 and float64 and to a rounding of ``g`` in half precision. ``g``
    and ``v`` are new parameters, ``parametrizations.weight.original0`` and ``original1`` as those of
    ``torch.nn.utils.parametrizations.weight_norm``, whose state dicts load: build the optimizer afterwards. Weight
    decay on ``v`` changes the effective learning rate alone; on ``g`` it decays the weight.

    Shapes: ``w`` and ``v`` as the weight; ``g`` is 1 in every dimension but ``dim``.

    Valid under every derivative mode; PyTorch's own kernel (2.13) has no forward mode. With inputs of mean 0 and
    covariance 1 it is batch normalization. A filter of a single entry is ``g`` with a sign, and its ``v`` learns
    nothing. See :func:`normlens.nn.init.data_dependent_` for the paper's start.

    Source: Salimans and Kingma, NeurIPS 2016, arXiv:1602.07868. Their start from data is no part of PyTorch's own.

    Args:
        module: holds the weight.
        name: of the parameter.
        dim: the dimension that counts the filters: 0 for linear maps and convolutions, 1 for transposed ones.

    Raises:
        ValueError: no such parameter, fewer than two dimensions, another reparametrization on it, or a filter of zeros.
    """
    if parametrize.is_parametrized(module, name):
        raise ValueError(
            f"weight_norm needs a plain parameter, of which it makes two; got {name!r} of {type(module).__name__} with "
            "a reparametrization on it; register weight_norm first, or remove the other"
        )
    return WeightNorm(dim).register(module, name)
