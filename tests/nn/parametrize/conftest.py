"""A reparametrized layer as a function of what is stored, and the curvature of a direction's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call


@pytest.fixture
def as_function() -> Callable[[nn.Module], tuple[Callable[..., Tensor], list[Tensor]]]:
    """``as_function(layer)``: the map from the parameters that make ``layer.weight`` to it, and where they stand."""

    def make(layer: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
        entry = layer.parametrizations.weight
        names = [name for name, _ in entry.named_parameters()]

        def weight(*at: Tensor) -> Tensor:
            return functional_call(entry, dict(zip(names, at, strict=True)), ())

        return weight, [parameter.detach().clone() for parameter in entry.parameters()]

    return make


@pytest.fixture
def direction_hessian() -> Callable[[Tensor, Tensor], Tensor]:
    """``direction_hessian(v, c)``: second derivative of ``c . v / |v|``, worked out by hand.

    With ``u = v / |v|`` and ``P = I - u u'`` it is ``-(u (P c)' + (P c) u' + (u . c) P) / |v|^2``.
    """

    def hessian(v: Tensor, c: Tensor) -> Tensor:
        u = v / torch.linalg.vector_norm(v)
        projection = torch.eye(len(v), dtype=v.dtype) - torch.outer(u, u)
        tangent = projection @ c
        return -(torch.outer(u, tangent) + torch.outer(tangent, u) + (u @ c) * projection) / (v @ v)

    return hessian
