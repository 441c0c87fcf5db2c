"""What went into chosen layers, and the gradients of the loss that came back to them, from one backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normlens.risk import EmpiricalRisk

__all__ = ["LayerPass", "layer_passes"]


@dataclass
class LayerPass:
    """One call of a layer.

    Attributes:
        name: of the module; from its second call on ``name@2``, ``name@3``.
        module: the layer.
        input: its first argument, detached.
        input_gradient: of the mean loss by all that was made of the input; None where no parameter stands before it.
        output_gradient: the same of the output.
    """

    name: str
    module: nn.Module
    input: Tensor
    input_gradient: Tensor | None = None
    output_gradient: Tensor | None = None


def layer_passes(risk: EmpiricalRisk, chosen: Callable[[nn.Module], bool]) -> list[LayerPass]:
    """Evaluate the gradient once and return the calls of the chosen layers that it came back to, in their order.

    The gradients are those of tensors in the graph of our own evaluation, which goes with it; hooks on modules are
    gone when this returns. Frozen parameters count like all others.

    Args:
        risk: of one batch.
        chosen: which modules; each must take a tensor first and return one.
    """
    called: list[LayerPass] = []
    risk = risk.select(lambda _, parameter: parameter.is_floating_point())
    with ExitStack() as undo:
        for name, module in risk.model.named_modules():
            if chosen(module):
                undo.callback(module.register_forward_hook(_recorder(called, name), with_kwargs=True).remove)
        risk.gradient()
    return [call for call in called if call.output_gradient is not None]


def _recorder(called: list[LayerPass], name: str) -> Callable[[nn.Module, Any, Any, Tensor], None]:
    def hook(module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> None:
        if not output.requires_grad:  # called where the model itself switches gradients off
            return
        before = sum(1 for call in called if call.module is module)
        first: Tensor = next(iter((*arguments, *keywords.values())))
        call = LayerPass(name if not before else f"{name}@{before + 1}", module, first.detach())
        called.append(call)
        output.register_hook(_keeper(call, "output_gradient"))  # type: ignore[no-untyped-call]
        if first.requires_grad:
            first.register_hook(_keeper(call, "input_gradient"))  # type: ignore[no-untyped-call]

    return hook


def _keeper(call: LayerPass, name: str) -> Callable[[Tensor], None]:
    return lambda gradient: setattr(call, name, gradient.detach())
