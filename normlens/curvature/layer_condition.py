"""Condition numbers of the diagonal blocks of one matrix, layer by layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable

import torch

from normlens.curvature.condition import ConditionNumber, condition_number
from normlens.curvature.hessian import hessian
from normlens.curvature.layout import ParameterLayout
from normlens.curvature.operator import LinearOperator, restrict
from normlens.risk import EmpiricalRisk

__all__ = ["layer_condition"]


def layer_condition(
    risk: EmpiricalRisk,
    matrix: Callable[[EmpiricalRisk], LinearOperator] = hessian,
    *,
    layers: str | Iterable[str] | None = None,
    tolerance: float = 1e-6,
    steps: int = 200,
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> dict[str, ConditionNumber]:
    r"""Return the condition number of each layer's diagonal block of a matrix, by the layer's name.

    .. math:: A_{ll} = E_l^\top A E_l

    :math:`E_l` picks the parameters that layer l owns itself; all others are held fixed. Right through train-mode
    batch norm, for the blocks are restrictions of one operator. Each is dense up to 3000 rows (a product for each
    row), beyond that a lower bound with quantiles (:func:`condition.condition_number`).

    Args:
        risk: model, loss, data and mode.
        matrix: makes the operator, e.g. ``hessian``, ``gauss_newton``, ``fisher``.
        layers: names or globs of modules that own selected parameters, "" for the model itself; None for all.
        tolerance: relative to each block's own largest eigenvalue.
        steps: Lanczos steps, where it comes to that.
        probes: of the density, where it comes to that.
        generator: draws the random vectors; None for one with seed 0 for each block.

    Raises:
        ValueError: no layer with selected parameters has such a name, or the tolerance does not fit.
    """
    owned: dict[str, list[str]] = {}
    for name in risk.parameters:
        owned.setdefault(name.rpartition(".")[0], []).append(name)
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    chosen = [layer for layer in owned if any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)]
    if owned and not chosen:
        raise ValueError(f"layers must match a module with selected parameters; {layers!r} is none of {list(owned)}")
    layout, operator = ParameterLayout(risk), matrix(risk)
    return {
        layer: condition_number(
            restrict(operator, layout.indices(*owned[layer])),
            tolerance=tolerance,
            steps=steps,
            probes=probes,
            generator=generator,
        )
        for layer in chosen
    }
