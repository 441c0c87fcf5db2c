"""Centered weight normalization: filters of mean zero and a set length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.nn.parametrize.base import Reparametrization, lengths

__all__ = ["centered_weight_norm"]


class CenteredWeightNorm(Reparametrization):
    """The map ``w = scale (v - mean) / (|v - mean| + eps)`` of :func:`centered_weight_norm`.

    Shapes: those of the weight.

    Source: Huang, Liu, Liu, Lang and Tao, ICCV 2017.

    Args:
        dim: the dimension that counts the filters.
        scale: length of the filters, one for all.
        eps: added to the length.
    """

    scale: float | nn.Parameter

    def __init__(self, dim: int = 0, *, scale: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)
        self.scale = scale

    def learn_scale(self, weight: Tensor) -> None:
        """Give each filter of ``weight`` a scale of its own, a parameter that begins at the one for all."""
        shape = [1] * weight.dim()
        shape[self.dim] = weight.shape[self.dim]
        self.scale = nn.Parameter(torch.full(shape, float(self.scale), device=weight.device, dtype=weight.dtype))

    def forward(self, v: Tensor) -> Tensor:
        """Center each filter and scale it."""
        centered, dims = self._centered(v)
        return (centered * (self.scale / (lengths(centered, dims) + self.eps))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take ``weight`` as ``v``, which returns it where it is centered and of length ``scale``.

        Args:
            weight: becomes ``v``.

        Raises:
            ValueError: a filter of one value throughout, of which centering leaves nothing.
        """
        centered, dims = self._centered(weight)
        self.check_directions(lengths(centered, dims), lengths(weight, dims), what="vary")
        return weight.detach().clone()

    def extra_repr(self) -> str:
        """List the settings."""
        scale = "learned" if isinstance(self.scale, Tensor) else self.scale
        return f"{super().extra_repr()}, scale={scale}, eps={self.eps}"

    def _centered(self, v: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        wide, dims = promote(v), self.fan_in_dims(v)
        return wide - wide.mean(dims, keepdim=True), dims


def centered_weight_norm(
    module: nn.Module,
    name: str = "weight",
    dim: int = 0,
    scale: float = 1.0,
    learn_scale: bool = False,
    eps: float = 1e-5,
) -> nn.Module:
    """Keep each filter at mean zero and at one length, and return the module.

    ``w = scale c / (|c| + eps)`` with ``c = v - mean(v)``, mean and length over all of a filter. At ``eps=0`` the
    gradient is ``dL/dv = (scale / |c|) (dL/dw - u (u . dL/dw) - mean(dL/dw))`` with ``u = c / |c|``: it sums to 0 and
    is orthogonal to ``c``. The weight is the same for ``a v + b``, ``a > 0``; the output is the same whatever constant
    is added to all inputs.

    Registering keeps the weight (but for ``eps``) only where its filters are centered and of length ``scale``: others
    become so. A filter of ``d`` entries has ``d - 2`` degrees of freedom left; of two entries one sign.

    Shapes: those of the weight; a learned scale is 1 in every dimension but ``dim``, and is called
    ``parametrizations.weight.0.scale``.

    Valid under every derivative mode. The paper's convolutions take ``scale`` the square root of 2, fixed.

    Source: Huang, Liu, Liu, Lang and Tao, ICCV 2017. Their PyTorch code adds ``eps`` to the length, as here; their Lua
    code for linear layers overwrites ``v`` by ``c`` at each pass, so that weight decay acts differently there.

    Args:
        module: holds the weight.
        name: of the parameter.
        dim: the dimension that counts the filters: 0 for linear maps and convolutions, 1 for transposed ones.
        scale: length of the filters.
        learn_scale: whether each filter learns a scale of its own, beginning at ``scale``.
        eps: added to the length.

    Raises:
        FanInError: filters of a single entry (a ValueError).
        ValueError: no such parameter, fewer than two dimensions, a negative eps, or a filter of one value throughout.
    """
    made = CenteredWeightNorm(dim, scale=scale, eps=eps)
    made.register(module, name, least_fan_in=2)
    if learn_scale:
        made.learn_scale(getattr(module, name))
    return module
