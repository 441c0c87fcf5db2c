"""The exact condition number of each neuron's own Hessian, where the samples do not meet above it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from normlens.batch import batch_size
from normlens.curvature.condition import ConditionNumber, condition_number
from normlens.risk import EmpiricalRisk

__all__ = ["CoupledSamplesError", "neuron_condition"]

_COUPLED = 1e-9  # of the largest curvature; rounding leaves 1e-15, batch norm over N samples about 1/N


class CoupledSamplesError(ValueError):
    """The loss of a sample depends on a neuron's output for another sample, so S is not diagonal."""


@dataclass
class _Seen:
    """One batch: the layer's inputs (R, m), its outputs as a leaf of the graph, and the batch's weight."""

    rows: Tensor
    outputs: Tensor
    weight: float


def neuron_condition(
    risk: EmpiricalRisk, layer: str, *, neurons: Iterable[int] | None = None, tolerance: float = 1e-6
) -> dict[int, ConditionNumber]:
    r"""Return the condition number of the Hessian of each neuron of a linear layer, by the neuron's index.

    .. math:: \nabla^2_{\hat w_i} L = \hat H^\top S_i \hat H, \quad \hat H = [e, H], \quad
              S_i = \tfrac1N \operatorname{diag}(\ell_j''(a_{ij})), \quad a_{ij} = \hat w_i^\top \hat h_j

    in the bias and the weights of neuron i, all other parameters fixed ([H] alone without a bias). Exact: H is what
    enters the layer, S comes from one double backward pass per neuron and batch, in float64 on a copy of the model.
    ``matvecs`` counts those passes. The quantity exists where a sample's loss depends on the neuron's output for that
    sample alone. That is not guessed from the layers above but computed: :math:`\partial^2 L/\partial a_i^2`, applied
    to a random vector, must act as a diagonal matrix does. Rows are all leading dimensions of the input: a linear
    layer below attention has several for each sample, and is refused where these meet, too.

    Args:
        risk: model, loss, data and mode.
        layer: name of an ``nn.Linear`` that is called once, with weights of its own; "" for the model itself.
        neurons: which outputs; None for all.
        tolerance: relative to each neuron's own largest eigenvalue.

    Raises:
        CoupledSamplesError: samples meet above the layer: batch norm in training mode, a contrastive loss, attention.
        ValueError: the layer or a neuron is not there, or the layer is not such a linear layer.

    Source: Lange, Helfrich, Ye, JMLR 23(72), 2022, section 3.
    """
    double = risk.double()
    module = _linear(double.model, layer)
    chosen = list(range(module.out_features)) if neurons is None else list(neurons)
    if bad := [i for i in chosen if not 0 <= i < module.out_features]:
        raise ValueError(f"neurons must be from 0 to {module.out_features - 1}; got {bad[0]}")
    size = module.in_features + (module.bias is not None)
    matrices = {i: torch.zeros(size, size, dtype=torch.float64) for i in chosen}
    batches = 0
    for seen, slope in _slopes(double, module, layer):
        for i in chosen:
            s = _curvatures(seen.outputs, slope, i, layer)
            matrices[i] += (seen.rows.T @ (s[:, None] * seen.rows)).cpu() * seen.weight
        batches += 1
    found = {i: condition_number(torch.linalg.eigvalsh(h), tolerance=tolerance) for i, h in matrices.items()}
    return {i: replace(result, method="dense", matvecs=batches) for i, result in found.items()}


def _linear(model: nn.Module, layer: str) -> nn.Linear:
    modules = dict(model.named_modules())
    module = modules.get(layer)
    if not isinstance(module, nn.Linear):
        linear = [name for name, found in modules.items() if isinstance(found, nn.Linear)]
        raise ValueError(f"layer must be the name of an nn.Linear, one of {linear}; got {layer!r}: for other layers "
                         "restrict an operator, or use layer_condition")  # fmt: skip
    users = [name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is module.weight]
    if len(users) > 1:
        raise ValueError(f"the layer must have weights of its own; they are shared by {users}: use layer_condition")
    return module


def _slopes(risk: EmpiricalRisk, module: nn.Linear, layer: str) -> Iterator[tuple[_Seen, Tensor]]:
    """Yield what passed the layer for each batch, with the gradient of the batch's loss by the layer's outputs."""
    batches = list(risk.batches())
    total = sum(map(batch_size, batches))
    for batch in batches:
        calls: list[_Seen] = []
        hook = module.register_forward_hook(_watch(calls, batch_size(batch) / max(1, total)))
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = risk.batch_loss({}, batch)
            if len(calls) != 1:
                raise ValueError(f"layer {layer!r} must be called once in a forward pass; it was {len(calls)} times")
            slope = torch.zeros_like(calls[0].outputs)
            if loss.requires_grad:  # else nothing that the layer says reaches it
                (slope,) = torch.autograd.grad(loss, calls[0].outputs, create_graph=True, materialize_grads=True)
        hook.remove()
        yield calls[0], slope


def _watch(calls: list[_Seen], weight: float) -> Any:
    def hook(module: nn.Linear, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        rows = inputs[0].detach().reshape(-1, module.in_features)
        if module.bias is not None:
            rows = torch.cat([torch.ones_like(rows[:, :1]), rows], 1)
        calls.append(_Seen(rows, outputs.detach().requires_grad_(), weight))
        return calls[-1].outputs.clone()  # what is above may change it in place, which a leaf does not allow

    return hook


def _curvatures(outputs: Tensor, slope: Tensor, neuron: int, layer: str) -> Tensor:
    """Return the diagonal of S for one neuron, (R,), once it is seen to be all of it."""
    if not slope.requires_grad:  # the loss is linear in the outputs
        return outputs.new_zeros(outputs[..., neuron].numel())
    weights = torch.randn(outputs[..., neuron].shape, dtype=outputs.dtype, generator=torch.Generator().manual_seed(0))
    weights = weights.to(outputs.device)
    diagonal, mixed = (_product(outputs, slope, neuron, v) for v in (torch.ones_like(weights), weights))
    off = float((mixed - weights * diagonal).abs().max())
    scale = max(float(mixed.abs().max()), float(diagonal.abs().max()))
    if off > _COUPLED * scale:
        raise CoupledSamplesError(
            f"the loss of a sample must depend on neuron {neuron} of {layer!r} for that sample alone; here other "
            f"samples (or positions) move it, by {off / scale:.1e} of the curvature, as batch norm in training mode "
            "does above a layer: S is not diagonal; use mode='eval', or the layer's block of the Hessian "
            "(layer_condition), which is right there"
        )
    return diagonal.flatten()


def _product(outputs: Tensor, slope: Tensor, neuron: int, v: Tensor) -> Tensor:
    (column,) = torch.autograd.grad(slope[..., neuron], outputs, v, retain_graph=True, materialize_grads=True)
    return column[..., neuron]
