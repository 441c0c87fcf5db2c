"""Directions through the parameters, by name: filter-normalized random ones, eigenvectors, the way to a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.risk import EmpiricalRisk
from normlens.typing import Named

__all__ = ["between", "filter_normalized", "from_vector"]

TINY = 1e-10
"""Added to the norm of a random filter, as in the authors' code: a filter of a single weight may be drawn near zero."""


def filter_normalized(risk: EmpiricalRisk, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    r"""Return a random direction in which each filter is as long as the network's own.

    .. math:: d_{ij} \leftarrow d_{ij} \frac{\|\theta_{ij}\|}{\|d_{ij}\| + 10^{-10}}, \qquad d \sim N(0, I)

    ``d_ij`` is row j (along dimension 0) of the weight of layer i: a convolution's filter, a neuron's incoming
    weights; tensors of one dimension and less (biases, scales and shifts of normalization) stay in place. So a plane
    through a network whose filters are scale-invariant is the same after theta -> c theta, and flatness can be
    compared between networks. In a transposed convolution dimension 0 is the input channel.

    Source: Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018, arXiv:1712.09913, section 4.

    Args:
        risk: whose parameters.
        generator: the source of randomness; None for a fresh one with seed 0.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    direction: dict[str, Tensor] = {}
    for name, theta in risk.parameters.items():
        drawn = torch.randn(theta.shape, generator=generator, device=generator.device, dtype=torch.float64)
        direction[name] = torch.zeros_like(theta) if theta.ndim <= 1 else _rescaled(drawn.to(theta.device), theta)
    return direction


def from_vector(risk: EmpiricalRisk, vector: Tensor) -> dict[str, Tensor]:
    """Return a flat vector, e.g. an eigenvector, by parameter name.

    The parameters follow each other as in ``risk.parameters``, each in row-major order.

    Args:
        risk: whose parameters.
        vector: (n,), one number for each parameter.

    Raises:
        ValueError: another shape.
    """
    parameters = risk.parameters
    sizes = [theta.numel() for theta in parameters.values()]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"a direction needs one number per parameter, shape ({sum(sizes)},); got {(*vector.shape,)}")
    parts = torch.split(vector.detach(), sizes)
    return {n: part.reshape(theta.shape).to(theta) for (n, theta), part in zip(parameters.items(), parts, strict=True)}


def between(risk: EmpiricalRisk, other_state: Named) -> dict[str, Tensor]:
    r"""Return :math:`\theta' - \theta`: at a coefficient of 1 the other parameters are reached, at 0 these.

    Buffers do not move: in mode "eval" the running statistics are those of the present model all the way.

    Args:
        risk: whose parameters are theta.
        other_state: theta', a ``state_dict()`` of the same model; buffers in it are passed over.

    Raises:
        ValueError: it lacks a parameter, or has one of another shape.
    """
    parameters = risk.parameters
    for name, theta in parameters.items():
        if name not in other_state or other_state[name].shape != theta.shape:
            got = (
                f"one of shape {tuple(other_state[name].shape)}" if name in other_state else f"{list(other_state)[:8]}"
            )
            raise ValueError(
                f"the other state must hold {name!r} of shape {tuple(theta.shape)}; got {got}; "
                "pass the state_dict() of the same, unwrapped model"
            )
    return {name: other_state[name].detach().to(theta) - theta for name, theta in parameters.items()}


def _rescaled(drawn: Tensor, theta: Tensor) -> Tensor:
    dims = tuple(range(1, theta.ndim))
    own = torch.linalg.vector_norm(theta, dim=dims, keepdim=True, dtype=torch.float64)
    direction: Tensor = drawn * own / (torch.linalg.vector_norm(drawn, dim=dims, keepdim=True) + TINY)
    return direction.to(theta.dtype)
