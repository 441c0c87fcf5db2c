"""Unit norm, as in nGPT: weights of vectors on the unit sphere, and the step that puts the stored ones back there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from normlens.nn.parametrize.base import Reparametrization, lengths

__all__ = ["unit_norm", "renormalize_"]  # noqa: RUF022 - the name of the file first, for the catalog


class UnitNorm(Reparametrization):
    """The map ``w = v / |v|`` of :func:`unit_norm`.

    Shapes: those of the weight.

    Source: Loshchilov, Hsieh, Sun and Ginsburg, 2024, arXiv:2410.01131.

    Args:
        dim: the dimension that counts the vectors.
    """

    def __init__(self, dim: int = 0) -> None:
        super().__init__(dim)

    def forward(self, v: Tensor) -> Tensor:
        """Scale each vector to length one."""
        return (v / lengths(v, self.fan_in_dims(v))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take ``weight`` with its vectors at length one, which returns it where they were so.

        Args:
            weight: becomes ``v`` but for the lengths.

        Raises:
            ValueError: a vector of zeros, which has no direction.
        """
        length = lengths(weight, self.fan_in_dims(weight))
        self.check_directions(length, length, what="have a direction")
        return (weight / length).to(weight.dtype).detach()


def unit_norm(module: nn.Module, name: str = "weight", dim: int = 0) -> nn.Module:
    """Keep the vectors of a weight at length one, and return the module.

    ``w = v / |v|``; the gradient is ``dL/dv = (I - w w') dL/dw / |v|``, tangent to the sphere. Call
    :func:`renormalize_` after each optimizer step to keep the stored ``v`` at length one as well, or else it grows
    and the effective learning rate falls as ``1 / |v|^2``.

    In nGPT the vectors are those of the embedding space: ``dim=0`` for what reads from it or holds it (queries, keys,
    values, the first map of the MLP, embeddings, logits), ``dim=1`` for what writes to it (attention output, the second
    map of the MLP). Registering keeps the direction of each vector and sets its length to one, in ``v`` too.

    Shapes: those of the weight.

    Valid under every derivative mode. A vector of a single entry is its sign and learns nothing.

    Source: Loshchilov, Hsieh, Sun and Ginsburg, 2024, arXiv:2410.01131. There the weights are plain parameters,
    renormalized after each step, and the gradient has a part along them; here it has none.

    Args:
        module: holds the weight.
        name: of the parameter.
        dim: the dimension that counts the vectors; the length is taken over all others.

    Raises:
        ValueError: no such parameter, fewer than two dimensions, or a vector of zeros.
    """
    return UnitNorm(dim).register(module, name)


@torch.no_grad()
def renormalize_(model: nn.Module) -> nn.Module:
    """Set the stored vectors under every :func:`unit_norm` of a model to length one in place, and return the model.

    ``v <- v / |v|``, after an optimizer step; the weights the model computes with stay as they are.

    Source: Loshchilov, Hsieh, Sun and Ginsburg, 2024, arXiv:2410.01131.

    Args:
        model: the module that is trained.

    Raises:
        ValueError: there is no :func:`unit_norm` in it.
    """
    found = [entry for entry in model.modules() if isinstance(entry, ParametrizationList) and _is_first(entry)]
    if not found:
        raise ValueError("renormalize_ needs a model with unit_norm on a weight; got none; register unit_norm first")
    for entry in found:
        entry.original.copy_(entry[0](entry.original))
    return model


def _is_first(entry: ParametrizationList) -> bool:
    """What another reparametrization makes of the stored tensor need not be of length one when that is."""
    return isinstance(entry[0], UnitNorm)
