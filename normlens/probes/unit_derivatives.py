"""The derivatives of the outputs by the weights of single units, sample by sample: a backward pass per output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.batch import split_batch
from normlens.curvature.gram import output_hessian
from normlens.optim.weight_layers import WeightLayer
from normlens.risk import EmpiricalRisk
from normlens.typing import Batch

__all__ = ["LayerDerivatives", "has_patches", "layer_derivatives", "patches"]

COUPLED = 1e-9
"""Of the largest derivative; rounding leaves 1e-15, statistics over N samples about 1/N."""

SHIFT = 1e-12
"""Change of the loss, beside its size and that of the outputs, that is rounding."""


@dataclass
class LayerDerivatives:
    """What entered a weight layer, and how each output of the network changes with what left it.

    Attributes:
        inputs: what entered, detached.
        slopes: one tensor (N, P, units) for each direction of the outputs: its derivative by what left the layer.
    """

    inputs: Tensor
    slopes: list[Tensor] = field(default_factory=list)


def layer_derivatives(risk: EmpiricalRisk, layers: Sequence[str]) -> dict[str, LayerDerivatives]:
    r"""Differentiate the outputs by what leaves some layers, for every sample of one batch.

    The directions of a sample's outputs are orthonormal and span the range of S, the Hessian of the loss by these
    outputs (a direction is zero for a sample where its S has fewer): :math:`J^\top S J` and
    :math:`\sum_i (v_i^\top J)^\top (v_i^\top J)` have the same null space, and how sure the network is of a sample,
    which may make S as small as it likes, has no say. One backward pass for each direction serves all samples, as long
    as no sample's outputs depend on another sample; that is tested.

    Args:
        risk: one batch, in float64; hooks are put on its model and taken off.
        layers: names of linear layers and convolutions, each called once.

    Raises:
        ValueError: samples meet in the network, or the loss couples them or is not convex in the outputs.
    """
    batch = next(iter(risk.batches()))
    with torch.enable_grad(), _watched(risk.model, layers) as seen:
        outputs = risk.batch_outputs({}, batch)
    directions = _directions(risk, outputs.detach(), batch).to(outputs)
    left = [seen[name][1] for name in layers]
    found = {name: LayerDerivatives(seen[name][0]) for name in layers}
    flat = outputs.flatten(1)
    for index in range(directions.shape[2]):
        for name, slope in zip(layers, _pull(flat, left, directions[:, :, index]), strict=True):
            found[name].slopes.append(slope)
    weights = torch.randn(len(flat), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(flat)
    _check_apart(_pull(flat, left, weights * directions[:, :, 0]), [found[name].slopes[0] for name in layers], weights)
    for name in layers:
        found[name].slopes = [_by_position(slope, risk.model.get_submodule(name)) for slope in found[name].slopes]
    return found


def has_patches(module: nn.Module) -> bool:
    """Say whether :func:`patches` knows what a unit of the layer sees: linear, and one- or two-dimensional convolution.

    Args:
        module: any module.
    """
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)


def patches(module: WeightLayer, inputs: Tensor) -> Tensor:
    """Return what each unit sees at each position, (N, P, d), in the order of a row of the layer's weight.

    Args:
        module: a layer of which :func:`has_patches` is true; for a convolution ``inputs`` may have other channels.
        inputs: what enters it.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])
    conv: Any = module
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(inputs, conv._reversed_padding_repeated_twice, mode=mode)
    one = isinstance(module, nn.Conv1d)
    image = padded.unsqueeze(2) if one else padded
    kernel, gap, step = (((1, *v) if one else v) for v in (conv.kernel_size, conv.dilation, conv.stride))
    return F.unfold(image, kernel, dilation=gap, stride=step).mT


@contextmanager
def _watched(model: nn.Module, layers: Sequence[str]) -> Iterator[Mapping[str, tuple[Tensor, Tensor]]]:
    """Keep what enters and leaves the layers; what leaves is a place in the graph that nothing changes in place."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
            place = outputs if outputs.requires_grad else outputs.detach().requires_grad_()
            seen[name] = (inputs[0].detach().clone(), place)
            return place.clone()

        return hook

    with ExitStack() as undo:
        for name in layers:
            undo.callback(model.get_submodule(name).register_forward_hook(watch(name)).remove)
        yield seen


def _directions(risk: EmpiricalRisk, outputs: Tensor, batch: Batch) -> Tensor:
    """Return an orthonormal basis of the range of each sample's S, (N, C, C), filled up with zeros."""
    hessian = output_hessian(risk, outputs, split_batch(batch)[1])
    size = hessian.shape[1]
    if _ignores_shifts(risk, outputs, batch):  # known better than from an S that is almost zero where p is almost one
        centered = torch.eye(size).to(hessian) - 1 / size
        hessian = centered @ hessian @ centered
    values, vectors = torch.linalg.eigh(hessian)
    keep = values > size * torch.finfo(values.dtype).eps * values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
    chosen: Tensor = (vectors * keep[:, None]).flip(2)
    return chosen


def _ignores_shifts(risk: EmpiricalRisk, outputs: Tensor, batch: Batch) -> bool:
    """Say whether one value added to all outputs of a sample leaves the loss as it is, as it does a softmax."""
    with torch.no_grad():
        shift = torch.rand(len(outputs), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        moved = outputs + shift.to(outputs).view(-1, *[1] * (outputs.ndim - 1))
        losses = [float(risk.output_loss(z, batch)) for z in (outputs, moved)]
    return abs(losses[1] - losses[0]) <= SHIFT * max(1.0, abs(losses[0]), float(outputs.abs().max()))


def _pull(outputs: Tensor, left: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, left, cotangent, retain_graph=True, materialize_grads=True))


def _check_apart(mixed: list[Tensor], plain: list[Tensor], weights: Tensor) -> None:
    for one, other in zip(mixed, plain, strict=True):
        expected = weights.view(-1, *[1] * (other.ndim - 1)) * other
        off, scale = float((one - expected).abs().max()), float(one.abs().max())
        if off > COUPLED * scale:
            raise ValueError(
                f"a Fisher matrix needs outputs that depend on their own sample alone; here other samples move them, "
                f"by {off / scale:.1e} of the largest derivative, in eval mode, too (statistics of the batch?): give "
                "the normalization running statistics"
            )


def _by_position(slope: Tensor, module: nn.Module) -> Tensor:
    moved = slope if isinstance(module, nn.Linear) else slope.movedim(1, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])
