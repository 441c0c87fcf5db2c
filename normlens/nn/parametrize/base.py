"""What the reparametrizations share: which entries of a weight make one filter, and the checks of weight and filter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from normlens.nn.functional import mean_square

__all__ = ["FanInError", "Reparametrization", "lengths"]


class FanInError(ValueError):
    """A filter has too few entries for what is to be made of it, such as a single one that is to be centered."""


class Reparametrization(nn.Module):
    """A map from what is stored to a weight, one filter by another.

    ``weight = f(stored)``, where a filter is what stands at one index of dimension ``dim``: all that makes one output
    unit of ``torch.nn.Linear`` and the convolutions (``dim=0``), or of a transposed convolution (``dim=1``).

    Shapes: that of the weight. Everything is computed in at least float32 and rounded to the dtype of what is stored.

    Source: see each subclass.

    Valid for transposed convolutions of one group; in those of several, one filter is all groups' of one index.

    Args:
        dim: the dimension that counts the filters.
        eps: kept for the subclass.

    Raises:
        ValueError: ``eps`` is below 0.
    """

    def __init__(self, dim: int, *, eps: float = 0.0) -> None:
        super().__init__()
        if not eps >= 0:
            raise ValueError(f"{type(self).__name__} needs eps of at least 0; got {eps}; leave it out")
        self.dim, self.eps = dim, eps

    def fan_in(self, weight: Tensor) -> int:
        """Count the entries of one filter of ``weight``."""
        return weight.numel() // max(weight.shape[self.dim], 1)

    def fan_in_dims(self, weight: Tensor) -> tuple[int, ...]:
        """List the dimensions of ``weight`` that lie within a filter."""
        return tuple(axis for axis in range(weight.dim()) if axis != self.dim % weight.dim())

    def register(self, module: nn.Module, name: str, *, least_fan_in: int = 1) -> nn.Module:
        """Put this on tensor ``name`` of ``module``, which keeps its dtype and shape, and return the module.

        Args:
            module: holds the tensor.
            name: of a parameter or a buffer.
            least_fan_in: how many entries a filter must have.

        Raises:
            FanInError: filters of fewer than ``least_fan_in`` entries.
            ValueError: there is no such tensor, or it cannot be taken apart into filters.
        """
        weight = getattr(module, name, None)
        if not isinstance(weight, Tensor) or is_lazy(weight):
            raise ValueError(
                f"{type(self).__name__} needs a tensor {name!r} with values; got {type(weight).__name__} "
                f"in {type(module).__name__}; name one of its parameters, and call a lazy layer once before"
            )
        self._check_shape(weight, least_fan_in)
        return parametrize.register_parametrization(module, name, self)

    def check_directions(self, kept: Tensor, whole: Tensor, *, what: str) -> None:
        """Refuse filters of which nothing is left but the rounding of what was taken away.

        Args:
            kept: length of each filter as it will be divided by.
            whole: length of the filter itself.
            what: a filter must do, in the message.

        Raises:
            ValueError: there is one.
        """
        if kept.is_meta:
            return
        # a constant filter less its mean leaves the rounding of that mean
        gone = (kept <= 8 * torch.finfo(whole.dtype).eps * whole).flatten().nonzero().flatten().tolist()
        if gone:
            raise ValueError(
                f"{type(self).__name__} needs every filter to {what}, or its gradient is nan; got {len(gone)} that do "
                f"not, the first at index {gone[0]} of dim {self.dim}; draw the weight anew"
            )

    def extra_repr(self) -> str:
        """List the settings."""
        return f"dim={self.dim}"

    def _check_shape(self, weight: Tensor, least_fan_in: int) -> None:
        if weight.dim() < 2 or not -weight.dim() <= self.dim < weight.dim():
            raise ValueError(
                f"{type(self).__name__} needs a weight of two or more dimensions, dim={self.dim} among them; "
                f"got shape {tuple(weight.shape)}; biases and the weights of normalization layers have no filters"
            )
        if self.fan_in(weight) < least_fan_in:
            raise FanInError(
                f"{type(self).__name__} needs filters of {least_fan_in} entries or more; got shape "
                f"{tuple(weight.shape)} with dim={self.dim}, whose filters have {self.fan_in(weight)}; "
                "leave this layer as it is, or use weight_norm"
            )


def lengths(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Euclidean length over ``dims``, which stay as ones: ``|v| = sqrt(sum v^2)``, in at least float32."""
    mean = mean_square(weight, dims)
    return (mean * (weight.numel() // max(mean.numel(), 1))).sqrt()
