"""What batch normalization's preconditioner does to the condition number of a layer's curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from normlens.curvature.activation_condition import bnp_root
from normlens.curvature.condition import DENSE_ROWS, ConditionNumber, condition_number
from normlens.curvature.hessian import hessian
from normlens.curvature.layout import ParameterLayout
from normlens.curvature.operator import LinearOperator, precondition, restrict
from normlens.risk import EmpiricalRisk

__all__ = ["BNPCondition", "bnp_condition", "bnp_layer_root"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class BNPCondition:
    """The condition of one layer's block, as it is and as gradient descent with BNP sees it.

    Attributes:
        plain: of the block A.
        preconditioned: of P'AP; where both are dense they share the products of ``plain``.
        mean: mu of the layer's input, (channels,), float64.
        variance: sigma^2, (channels,), biased, float64, without the floors.
        samples: how many input values each of them rests on.
    """

    plain: ConditionNumber
    preconditioned: ConditionNumber
    mean: Tensor
    variance: Tensor
    samples: int


class _LayerRoot(LinearOperator):
    """P of a whole layer on its (weight, bias), the same for every neuron but for the channels it reads."""

    def __init__(self, mean: Tensor, deviation: Tensor, q: float) -> None:
        units, inputs = mean.shape
        super().__init__(units * (inputs + 1), mean.dtype, mean.device)
        self._mean, self._deviation, self._q, self._units = mean, deviation, q, units

    def matvec(self, v: Tensor) -> Tensor:
        """Return P v."""
        weight, bias = v[: -self._units].view_as(self._mean) / self._deviation, v[-self._units :]
        return torch.cat([weight.flatten(), bias - (weight * self._mean).sum(1)]) / self._q

    def transposed(self, v: Tensor) -> Tensor:
        """Return P' v."""
        weight, bias = v[: -self._units].view_as(self._mean), v[-self._units :]
        return torch.cat([((weight - bias[:, None] * self._mean) / self._deviation).flatten(), bias]) / self._q


def bnp_condition(
    risk: EmpiricalRisk,
    layer: str,
    matrix: Callable[[EmpiricalRisk], LinearOperator] = hessian,
    *,
    relative_floor: float = 0.0,
    floor: float = 0.0,
    tolerance: float = 1e-6,
    steps: int = 200,
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> BNPCondition:
    r"""Return the condition numbers of a layer's block before and after preconditioning, A and :math:`P^\top AP`.

    P is :func:`activation_condition.bnp_root` for every neuron, from the moments of the layer's input over the whole
    data, per input channel of a convolution. Each number is dense up to 3000 rows, beyond that a lower bound with
    quantiles. The scale q changes neither and is left at 1. With zero padding P is what the method uses, but no longer
    the same as normalizing the input. The tolerance is relative to each matrix's own largest eigenvalue.

    Args:
        risk: model, loss, data and mode.
        layer: name of a linear or convolutional layer with a bias, both selected; "" for the model itself.
        matrix: makes the operator, e.g. ``hessian``, ``gauss_newton``, ``fisher``.
        relative_floor: epsilon_1, of the largest variance, added to each.
        floor: epsilon_2, added to each variance.
        tolerance: of the condition numbers.
        steps: Lanczos steps, where it comes to that.
        probes: of the density, where it comes to that.
        generator: draws the random vectors; None for one with seed 0 for each.

    Raises:
        ValueError: there is no such layer, it has no bias, or an input without variance has no floor.

    Source: Lange, Helfrich, Ye, JMLR 23(72), 2022, section 3 and algorithm 1.
    """
    module = _layer(risk.model, layer)
    mean, variance, samples = _input_moments(risk, layer)
    prefix = f"{layer}." if layer else ""
    indices = ParameterLayout(risk).indices(f"{prefix}weight", f"{prefix}bias")
    block = restrict(matrix(risk), indices)
    root = bnp_layer_root(
        module, mean.to(block.device, block.dtype), variance.to(block.device, block.dtype),
        relative_floor=relative_floor, floor=floor,
    )  # fmt: skip
    if block.shape[0] <= DENSE_ROWS:
        plain, preconditioned = _exact(block, root, tolerance)
    else:
        plain, preconditioned = (
            condition_number(a, tolerance=tolerance, steps=steps, probes=probes, generator=generator)
            for a in (block, precondition(block, root))
        )
    return BNPCondition(plain, preconditioned, mean, variance, samples)


def _exact(block: LinearOperator, root: LinearOperator, tolerance: float) -> list[ConditionNumber]:
    """Return both condition numbers from one dense block: its products are what takes time."""
    a = block.dense()
    half = torch.stack([root.transposed(column) for column in a.T])  # A P
    whole = torch.stack([root.transposed(column) for column in half.T])  # P'A P
    spectra = [torch.linalg.eigvalsh(m.double()).to(m.dtype) for m in (a, (whole + whole.T) / 2)]
    found = [condition_number(values, tolerance=tolerance) for values in spectra]
    return [replace(result, method="dense", matvecs=len(a)) for result in found]


def bnp_layer_root(
    module: nn.Module,
    mean: Tensor,
    variance: Tensor,
    *,
    q: float = 1.0,
    relative_floor: float = 0.0,
    floor: float = 0.0,
) -> LinearOperator:
    """Return the preconditioner P of a whole layer, on its flattened weight followed by its bias.

    Args:
        module: linear or convolutional, with a bias; grouped convolutions read their own channels.
        mean: of the input, (channels,).
        variance: of the input, (channels,), biased.
        q: the scale, positive.
        relative_floor: epsilon_1.
        floor: epsilon_2.

    Raises:
        ValueError: the layer is another one or has no bias, or the moments do not fit (:func:`bnp_root`).
    """
    _check_layer(module, type(module).__name__)
    weight: Tensor = module.weight  # type: ignore[assignment]
    groups = int(getattr(module, "groups", 1))
    if len(mean) != weight.shape[1] * groups:
        raise ValueError(f"the moments must be of {weight.shape[1] * groups} input channels; got {len(mean)}")
    root = bnp_root(mean, variance, q=q, relative_floor=relative_floor, floor=floor)
    spread = [_per_weight(moment, weight.shape, groups) for moment in (mean, root.deviation)]
    return _LayerRoot(spread[0], spread[1], q)


def _per_weight(moment: Tensor, shape: torch.Size, groups: int) -> Tensor:
    """Spread a value for each input channel over the weights that it is multiplied by, (out, in / groups * kernel)."""
    by_unit = moment.view(groups, -1).repeat_interleave(shape[0] // groups, 0)
    return by_unit.repeat_interleave(shape[2:].numel(), 1)


def _layer(model: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"layer must be a module of the model; {layer!r} is none of {list(modules)}")
    _check_layer(modules[layer], layer)
    return modules[layer]


def _check_layer(module: nn.Module, name: str) -> None:
    if not isinstance(module, _LAYERS) or module.bias is None:
        raise ValueError(
            f"the preconditioner is of a linear or convolutional layer with a bias, without which inputs cannot be "
            f"centered; {name!r} is {module}: add a bias"
        )


def _input_moments(risk: EmpiricalRisk, layer: str) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance of the layer's input channels, and how many values there are of each."""
    double = risk.double()
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        rows = inputs[0] if isinstance(module, nn.Linear) else inputs[0].movedim(-_rank(module) - 1, -1)
        seen.append(rows.detach().flatten(0, -2))

    double.model.get_submodule(layer).register_forward_hook(watch)
    for _ in double.outputs():
        pass
    if not seen:
        raise ValueError(f"layer {layer!r} must take part in the forward pass; it was never called")
    rows = torch.cat(seen)
    return rows.mean(0).cpu(), rows.var(0, correction=0).cpu(), len(rows)


def _rank(module: nn.Module) -> int:
    """Return the number of spatial axes of a convolution's input."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.ndim - 2
