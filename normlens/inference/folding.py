"""Folding: a batch norm in eval mode taken into the layer before it."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

import torch
from torch import Tensor, nn

from normlens.inference.batch_statistics import stored_moments
from normlens.nn.batch_kalman_norm import BatchKalmanNorm
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.batch_renorm import BatchRenorm
from normlens.nn.cross_iteration_batch_norm import CrossIterationBatchNorm
from normlens.nn.ghost_batch_norm import GhostBatchNorm
from normlens.nn.independent_component import IndependentComponent
from normlens.nn.mean_only_batch_norm import MeanOnlyBatchNorm

__all__ = ["eval_affine", "fold_batchnorm", "fold_batchnorms", "is_affine_in_eval"]

_AFFINE = (
    nn.modules.batchnorm._BatchNorm,
    BatchNorm,
    GhostBatchNorm,
    BatchRenorm,
    CrossIterationBatchNorm,
    BatchKalmanNorm,
    MeanOnlyBatchNorm,
    IndependentComponent,  # in eval mode nothing is dropped
)
_FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# By what they compute, not by what they derive from: a subclass may add an activation of its own.
_AFFINE_FORWARDS = {nn.SyncBatchNorm.forward, *(kind.forward for kind in _AFFINE)}
_FOLDABLE_FORWARDS = {kind.forward for kind in _FOLDABLE}
_LayerT = TypeVar("_LayerT", bound=nn.Module)


def is_affine_in_eval(norm: nn.Module) -> bool:
    """Say whether a layer in eval mode is one scale and one shift per channel, from running statistics."""
    return type(norm).forward in _AFFINE_FORWARDS and isinstance(getattr(norm, "running_mean", None), Tensor)


def eval_affine(norm: nn.Module, *, what: str) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm in eval mode, ``(C,)`` each in float64.

    ``scale = weight / sqrt(running_var + eps)`` and ``shift = bias - scale running_mean``; a mean-only batch norm has
    scale 1.

    Args:
        norm: PyTorch's batch norm or ours, ghost, renormalized, cross-iteration, Kalman or mean-only.
        what: who asks, named in the message.

    Raises:
        ValueError: it is no such layer, or keeps no running statistics.
    """
    if not is_affine_in_eval(norm):
        raise ValueError(
            f"{what} needs a batch norm that is one scale and one shift per channel in eval mode, with running "
            f"statistics; got {norm}; convert it to BatchNorm with track_running_stats=True and calibrate that"
        )
    mean, var = (moment.detach().double() for moment in stored_moments(norm))
    scale = torch.ones_like(mean) if var.isnan().all() and norm.running_var is None else (var + _eps(norm)).rsqrt()
    weight, bias = norm.weight, norm.bias
    scale = scale * weight.detach().double() if isinstance(weight, Tensor) else scale
    return scale, (bias.detach().double() if isinstance(bias, Tensor) else 0) - scale * mean


@torch.no_grad()
def fold_batchnorm(layer: _LayerT, norm: nn.Module) -> _LayerT:
    r"""Return a copy of a linear or convolution layer that does the work of the batch norm behind it, too.

    .. math:: W' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W, \qquad
        b' = \beta + \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} (b - \mu),

    per output channel; computed in float64 and rounded once. The copy always has a bias; groups, strides and any kind
    of padding stay, for the norm comes after them.

    Valid in eval mode. Behind a linear layer the channels must be its last dimension and the norm's dimension 1, so
    inputs ``(N, C)``. Both arguments stay as they are.

    Source: elementary; papers on noise and quantization of batch norm presuppose it.

    Args:
        layer: ``torch.nn.Linear`` or ``Conv1d`` to ``Conv3d``.
        norm: the batch norm behind it, in eval mode; which ones see :func:`eval_affine`.

    Raises:
        ValueError: a layer of another kind (a transposed convolution, say), a reparametrized weight, a norm in train
            mode, without running statistics or of another kind, or numbers of channels that differ.
    """
    if type(layer).forward not in _FOLDABLE_FORWARDS or not isinstance(layer, _FOLDABLE):
        raise ValueError(
            f"fold_batchnorm needs torch.nn.Linear or Conv1d to Conv3d, whose output channels are the first dimension "
            f"of the weight; got {type(layer).__name__}; leave its batch norm in place"
        )
    if "weight" not in layer._parameters:
        raise ValueError(
            f"fold_batchnorm needs a plain weight; got a reparametrized one in {type(layer).__name__}, which would be "
            "computed anew from what it is made of; remove the parametrization first"
        )
    if norm.training:
        raise ValueError(
            "fold_batchnorm needs a norm in eval mode, which is what it preserves; got train; call .eval()"
        )
    scale, shift = eval_affine(norm, what="fold_batchnorm")
    weight, bias = layer.weight, layer.bias
    if len(scale) != len(weight):
        raise ValueError(
            f"fold_batchnorm needs a norm of the layer's {len(weight)} output channels; got {len(scale)}; "
            "pass the norm that follows this layer directly"
        )
    folded = copy.deepcopy(layer)
    wide = weight.double() * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    offset = shift if bias is None else shift + scale * bias.double()
    folded.weight = nn.Parameter(wide.to(weight.dtype), requires_grad=weight.requires_grad)
    folded.bias = nn.Parameter(offset.to(weight.dtype), requires_grad=weight.requires_grad)
    return folded


def fold_batchnorms(model: nn.Module) -> nn.Module:
    """Fold every batch norm that directly follows a foldable layer in an ``nn.Sequential``, in place; return the model.

    The norm's place is taken by ``nn.Identity``. What stands in several places, or follows in a ``forward`` of the
    model's own, is left alone: that it follows could not be known; use :func:`fold_batchnorm` there.

    Args:
        model: in eval mode.

    Raises:
        ValueError: as :func:`fold_batchnorm`, of a pair that follows each other.
    """
    places = [id(child) for module in set(model.modules()) for child in module._modules.values() if child is not None]
    folded: list[tuple[nn.Module, str, nn.Module]] = []
    for sequence in [module for module in model.modules() if type(module).forward is nn.Sequential.forward]:
        for (first, layer), (second, norm) in itertools.pairwise(sequence.named_children()):
            if _is_pair(layer, norm) and places.count(id(layer)) == places.count(id(norm)) == 1:
                folded += [(sequence, first, fold_batchnorm(layer, norm)), (sequence, second, nn.Identity())]
    for parent, name, replacement in folded:  # only now: if one pair cannot be folded, the model stays as it was
        setattr(parent, name, replacement)
    return model


def _is_pair(layer: nn.Module, norm: nn.Module) -> bool:
    return type(layer).forward in _FOLDABLE_FORWARDS and "weight" in layer._parameters and is_affine_in_eval(norm)


def _eps(norm: nn.Module) -> float:
    return float(getattr(norm, "eps", 0.0))
