"""The first samples of the probe data as one batch, and single layers in train mode within it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normlens.nn.weighted.blank_out import Stochastic
from normlens.risk import EmpiricalRisk

__all__ = ["at_the_mean", "first_batch", "outputs_of", "training"]


def first_batch(risk: EmpiricalRisk, samples: int) -> EmpiricalRisk:
    """Return the risk on the first samples, joined to one batch however the data are cut.

    What depends on how samples meet in a batch (a normalization in train mode, the masks of dropout) is then the same
    for the same samples.

    Args:
        risk: the risk on all probe data.
        samples: how many; all, where there are fewer.
    """
    joined = risk.head(samples)
    joined.data = _joined(list(joined.batches()))
    return joined


@contextmanager
def training(model: nn.Module, chosen: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Let the chosen modules run in train mode within evaluations of a risk, whatever its own mode is.

    Done by hooks that are gone after the block; the evaluation itself puts the modes back.

    Args:
        model: ``risk.model``.
        chosen: which modules.
    """
    with ExitStack() as undo:
        for module in filter(chosen, model.modules()):
            undo.callback(module.register_forward_pre_hook(_switch_on).remove)
        yield


@contextmanager
def at_the_mean(model: nn.Module) -> Iterator[None]:
    """Let stochastic layers return their means within the block, also where the training lets them draw.

    Two evaluations are then of one function, and the generator of the training stays where it is.

    Args:
        model: ``risk.model``.
    """
    layers = [module for module in model.modules() if isinstance(module, Stochastic)]
    sources = [layer.source for layer in layers]
    try:
        for layer in layers:
            layer.source = None
        yield
    finally:
        for layer, source in zip(layers, sources, strict=True):
            layer.source = source


def outputs_of(risk: EmpiricalRisk, *, what: str) -> Tensor:
    """Return the outputs for the first batch of a risk, without a graph.

    Args:
        risk: of one batch.
        what: who asks, named in the message.

    Raises:
        ValueError: the model returns anything but a tensor ``(N, ...)`` of one dimension more.
    """
    outputs, _ = next(iter(risk.outputs()))
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ValueError(
            f"the model must return one tensor (N, C, ...) for {what}; got {type(outputs).__name__}; give the lens a "
            "forward= that picks it out"
        )
    return outputs.detach()


def _switch_on(module: nn.Module, _arguments: Any) -> None:
    for part in module.modules():
        part.training = True


def _joined(batches: Sequence[Any]) -> Any:
    """Join batches of any nesting along the first dimension of their tensors."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches)) if first.ndim else first
    if isinstance(first, Mapping):
        return {key: _joined([batch[key] for batch in batches]) for key in first}
    if isinstance(first, list | tuple):
        parts = [_joined(part) for part in zip(*batches, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first
