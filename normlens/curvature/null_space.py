"""Directions of no curvature that are known from the network's structure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from normlens.curvature.operator import LinearOperator
from normlens.risk import EmpiricalRisk

__all__ = ["NullSpace", "null_directions"]

_ZERO = 1e-11  # of the largest derivative: above the rounding of float64 in a deep network
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class NullSpace:
    """Orthonormal directions along which neither the outputs' share in the loss nor the loss changes.

    Attributes:
        columns: (n, k) sparse, float64; n runs over the risk's parameters in their order, each flattened.
        labels: of each column, ``parameter[unit, input]`` or, for a softmax shift, ``parameter[:, input]``.
        reasons: of each column.
    """

    columns: Tensor
    labels: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def basis(self) -> Tensor:
        """The columns as a dense (n, k) matrix, for ``deflate``."""
        return self.columns.to_dense()

    def project(self, v: Tensor) -> Tensor:
        """Return v, (n,), without its part along the directions."""
        columns = self.columns.to(v)
        inside: Tensor = torch.sparse.mm(columns, torch.sparse.mm(columns.T, v[:, None]))
        return v - inside[:, 0]

    def deflate(self, operator: LinearOperator) -> LinearOperator:
        r"""Return :math:`(I - QQ^\top) A (I - QQ^\top)`, as ``operator.deflate`` with the basis, which is not formed.

        Raises:
            ValueError: the operator has other rows.
        """
        return _Deflated(operator, self)

    @property
    def counts(self) -> dict[str, int]:
        """How many directions there are of each reason."""
        return dict(Counter(self.reasons))


class _Deflated(LinearOperator):
    def __init__(self, operator: LinearOperator, space: NullSpace) -> None:
        n = space.columns.shape[0]
        if operator.shape[0] != n:
            raise ValueError(f"the operator must have the {n} rows of the null directions; got {operator.shape[0]}")
        super().__init__(n, operator.dtype, operator.device, (operator,))
        self._operator = operator
        self._space = replace(space, columns=space.columns.to(operator.device, operator.dtype))

    def matvec(self, v: Tensor) -> Tensor:
        """Return the product, with the part along the directions taken out before and after."""
        return self._space.project(self._operator.matvec(self._space.project(v)))


@dataclass(frozen=True)
class _Direction:
    reason: str
    name: str
    label: str
    indices: Tensor  # within the flattened parameter; all with one value


class _Watch:
    """The largest input of every feature of the linear and convolutional layers, and who made the outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.largest: dict[str, Tensor] = {}
        self.last: tuple[str, Tensor] | None = None
        for name, module in model.named_modules():
            if isinstance(module, _LAYERS) and getattr(module, "groups", 1) == 1:
                module.register_forward_hook(lambda m, i, o, name=name: self._see(name, m, i[0], o))

    def _see(self, name: str, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        features = inputs if isinstance(module, nn.Linear) else inputs.movedim(1, -1)
        largest = features.detach().abs().flatten(0, -2).amax(0)
        self.largest[name] = torch.maximum(largest, self.largest[name]) if name in self.largest else largest
        self.last = (name, outputs.detach())


def null_directions(risk: EmpiricalRisk) -> NullSpace:
    r"""Return the exactly null directions of the loss Hessian and of the Gauss-Newton matrix that have a reason.

    Of single parameters, whose derivative of every output is zero:
    *bias before normalization*, a bias that batch norm in training mode subtracts;
    *dead input*, a weight whose input feature is zero on all data (a dead pixel, a dead unit below);
    *dead unit*, the incoming weights and the bias of a unit that passes nothing on.
    *Shift before normalization*: one value added to the biases of all channels of a group that group or layer norm
    centers; to their weights from one input, too, where each sample is one row of the norm (linear layers).
    And *softmax shift*: one vector added to the weights of all classes in the last linear layer, in + 1
    directions when the loss is unchanged by adding a constant to a sample's outputs.

    Each is verified on the data in float64, on a copy of the model: outputs (for the shift, the loss) and gradient
    stay the same along it; what fails is left out. They hold around any theta, not at critical points only. So the
    rescaling of scale-invariant weights, and of a rectified unit against the weights that it feeds, is not among them:
    it is null of the Gauss-Newton matrix, but :math:`Hw = -\nabla L` for the Hessian; nor are overlapping units.

    Args:
        risk: the model on its data; outputs are one tensor.

    Raises:
        ValueError: the outputs are no tensor.
    """
    double = risk.double()
    watch = _Watch(double.model)
    derivative, signed = _random_derivative(double)
    found = _dead(double, watch, derivative)
    found += _group_shifts(double.model, watch, derivative, signed, found)
    found += _softmax_shift(double, watch, derivative)
    kept: list[_Direction] = []
    for key in dict.fromkeys((d.reason, d.name) for d in found):
        group = [d for d in found if (d.reason, d.name) == key]
        kept += group if _is_null(double, group) else [d for d in group if _is_null(double, [d])]
    return _assemble(risk, kept)


def _random_derivative(risk: EmpiricalRisk) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return max over the batches of |J' r|, r Gaussian: zero where a parameter moves no output; and the last J' r."""
    generator = torch.Generator().manual_seed(0)
    theta = {name: tensor.clone().requires_grad_() for name, tensor in risk.parameters.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in risk.parameters.items()}

    def differentiate(outputs: Any) -> list[Tensor]:
        if not isinstance(outputs, Tensor):
            raise ValueError(f"the model must return one tensor; got {type(outputs).__name__}: pick it in `forward`")
        r = torch.randn(outputs.shape, dtype=outputs.dtype, generator=generator).to(outputs.device)
        return list(torch.autograd.grad(outputs, list(theta.values()), r, allow_unused=True, materialize_grads=True))

    gradients: list[Tensor] = []
    for batch in risk.batches():
        with torch.enable_grad(), risk._undisturbed():
            gradients = risk._call_with(theta, batch, differentiate)
        total = {name: torch.maximum(total[name], g.abs()) for name, g in zip(total, gradients, strict=True)}
    return total, dict(zip(total, gradients, strict=False))


def _dead(risk: EmpiricalRisk, watch: _Watch, derivative: dict[str, Tensor]) -> list[_Direction]:
    """Name the single parameters without effect by the layer that they belong to."""
    top = max(float(d.max()) for d in derivative.values())
    found = []
    for layer, largest in watch.largest.items():
        weight, bias = (derivative.get(f"{layer}.{part}") for part in ("weight", "bias"))
        still_rows = None if weight is None else (weight.flatten(1) <= _ZERO * top).all(1)
        if weight is not None and still_rows is not None:
            for index in (weight <= _ZERO * top).nonzero().tolist():
                reason = "dead input" if float(largest[index[1]]) == 0 else "dead unit" if still_rows[index[0]] else ""
                found.append(_single(f"{layer}.weight", weight, index, reason))
        if bias is not None:
            for index in (bias <= _ZERO * top).nonzero().tolist():
                dead = still_rows is not None and bool(still_rows[index[0]])
                found.append(
                    _single(f"{layer}.bias", bias, index, "dead unit" if dead else "bias before normalization")
                )
    return [direction for direction in found if direction.reason]


def _single(name: str, tensor: Tensor, index: list[int], reason: str) -> _Direction:
    flat = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)[tuple(index)].view(1)
    return _Direction(reason, name, f"{name}{index}", flat)


def _group_shifts(
    model: nn.Module, watch: _Watch, derivative: dict[str, Tensor], signed: dict[str, Tensor], dead: list[_Direction]
) -> list[_Direction]:
    """Propose one value added to all channels of a group: where nothing centers the group, the outputs move."""
    top = max(float(d.max()) for d in derivative.values())
    found = []
    for name in (f"{layer}.{part}" for layer in watch.largest for part in ("weight", "bias")):
        if name in derivative:
            free = torch.ones(derivative[name].numel(), dtype=torch.bool)
            free[torch.cat([torch.zeros(0, dtype=torch.long), *(d.indices.cpu() for d in dead if d.name == name)])] = 0
            for groups in _group_counts(model, len(derivative[name])):  # the finest first: others are sums of it
                new = _shifts(name, derivative[name], signed[name], groups, free, _ZERO * top)
                free[torch.cat([torch.zeros(0, dtype=torch.long), *(d.indices.cpu() for d in new)])] = False
                found += new
    return found


def _group_counts(model: nn.Module, units: int) -> list[int]:
    """Return into how many groups of two channels or more the norms of the model may cut ``units``, descending."""
    named = [getattr(module, "num_groups", None) for module in model.modules()]
    counts = {1} | {count for count in named if isinstance(count, int) and count > 0}
    return sorted((count for count in counts if units % count == 0 and units > count), reverse=True)


def _shifts(name: str, derivative: Tensor, signed: Tensor, groups: int, free: Tensor, zero: float) -> list[_Direction]:
    """Return the groups whose common shift has no effect while that of a single channel has one."""
    size = len(signed) // groups
    cut = (groups, size, -1)
    still = (signed.reshape(cut).sum(1).abs() <= zero) & (derivative.reshape(cut) > zero).any(1)
    places = torch.arange(signed.numel()).view(cut)
    found = []
    for group, inner in still.nonzero().tolist():
        indices = places[group, :, inner]
        indices = indices[free[indices]]
        place = "".join(f", {int(i)}" for i in torch.unravel_index(torch.tensor(inner), signed.shape[1:] or (1,)))
        label = f"{name}[{group * size}:{(group + 1) * size}{place if signed.ndim > 1 else ''}]"
        if len(indices) > 1:
            found.append(_Direction("shift before normalization", name, label, indices.to(signed.device)))
    return found


def _softmax_shift(risk: EmpiricalRisk, watch: _Watch, derivative: dict[str, Tensor]) -> list[_Direction]:
    generator = torch.Generator().manual_seed(1)
    for batch in risk.batches():
        with torch.no_grad():
            outputs = risk.batch_outputs({}, batch)
            if watch.last is None or outputs.ndim != 2 or not torch.equal(watch.last[1], outputs):
                return []
            shift = torch.randn(len(outputs), 1, dtype=outputs.dtype, generator=generator).to(outputs.device)
            losses = [float(risk.output_loss(z, batch)) for z in (outputs, outputs + shift)]
        if abs(losses[0] - losses[1]) > _ZERO * max(1.0, abs(losses[0])):
            return []
    if watch.last is None:
        return []
    layer, largest = watch.last[0], watch.largest[watch.last[0]]
    found = []
    if (weight := derivative.get(f"{layer}.weight")) is not None:
        rows = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
        alive = largest.nonzero()[:, 0].tolist()
        found = [_Direction("softmax shift", f"{layer}.weight", f"{layer}.weight[:, {j}]", rows[:, j]) for j in alive]
    if (bias := derivative.get(f"{layer}.bias")) is not None:
        whole = torch.arange(len(bias), device=bias.device)
        found.append(_Direction("softmax shift", f"{layer}.bias", f"{layer}.bias[:]", whole))
    return found


def _is_null(risk: EmpiricalRisk, group: list[_Direction]) -> bool:
    """Move along a random combination: all of them are null if it is, with probability one."""
    theta, name = risk.parameters, group[0].name
    generator = torch.Generator().manual_seed(2)
    step = torch.zeros_like(theta[name]).flatten()
    for direction in group:
        step[direction.indices] += 1e-3 * float(torch.randn((), generator=generator))
    moved = theta | {name: theta[name] + step.view_as(theta[name])}
    here, there = risk.gradient(), risk.gradient(at=moved)
    change = max(float((here[key] - there[key]).abs().max()) for key in here)
    scale = max(float(value.abs().max()) for value in here.values())
    return change <= _ZERO * scale and (group[0].reason == "softmax shift" or _same_outputs(risk, moved))


def _same_outputs(risk: EmpiricalRisk, moved: dict[str, Tensor]) -> bool:
    with torch.no_grad():
        for batch in risk.batches():
            here, there = risk.batch_outputs({}, batch), risk.batch_outputs(moved, batch)
            if float((here - there).abs().max()) > _ZERO * max(1.0, float(here.abs().max())):
                return False
    return True


def _assemble(risk: EmpiricalRisk, kept: list[_Direction]) -> NullSpace:
    starts, n = {}, 0
    for name, tensor in risk.parameters.items():
        starts[name], n = n, n + tensor.numel()
    rows = [direction.indices.cpu() + starts[direction.name] for direction in kept]
    columns = [torch.full((len(row),), j) for j, row in enumerate(rows)]
    values = [torch.full((len(row),), len(row) ** -0.5, dtype=torch.float64) for row in rows]
    empty = torch.zeros(0, dtype=torch.long)
    indices = torch.stack([torch.cat([empty, *rows]), torch.cat([empty, *columns])])
    entries = torch.cat([torch.zeros(0, dtype=torch.float64), *values])
    matrix = torch.sparse_coo_tensor(indices, entries, (n, len(kept)), check_invariants=True).coalesce()
    return NullSpace(matrix, tuple(d.label for d in kept), tuple(d.reason for d in kept))
