"""ParameterLayout: between parameters by name and one flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from normlens.risk import EmpiricalRisk

__all__ = ["ParameterLayout"]


class ParameterLayout:
    """The order in which the selected parameters of a risk stand in a vector.

    Args:
        risk: its selected parameters, in the order of ``named_parameters()``.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        parameters = risk.parameters
        if not parameters:
            raise ValueError(
                "curvature needs at least one trainable parameter; the model has none: "
                "set requires_grad, or choose some with params="
            )
        self.shapes = {name: tensor.shape for name, tensor in parameters.items()}
        self.sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        self.n = sum(self.sizes.values())
        first = next(iter(parameters.values()))
        self.dtype, self.device = first.dtype, first.device

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return (n,) from tensors by name."""
        return torch.cat([tensors[name].reshape(-1).to(self.dtype) for name in self.shapes])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return tensors by name from (n,)."""
        parts = torch.split(vector, list(self.sizes.values()))
        return {name: part.view(self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)}

    def indices(self, *names: str) -> Tensor:
        """Return where the parameters of these names stand in the vector, for :func:`operator.restrict`.

        Raises:
            ValueError: no selected parameter has that name.
        """
        unknown = [name for name in names if name not in self.shapes]
        if unknown:
            raise ValueError(f"names must be selected parameters; {unknown[0]!r} is none of {list(self.shapes)[:12]}")
        starts, position = {}, 0
        for name, size in self.sizes.items():
            starts[name] = position
            position += size
        return torch.cat([torch.arange(starts[name], starts[name] + self.sizes[name]) for name in names])
