"""What the transforms share: they hang on an optimizer, change its gradients or weights, and come off again."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normlens.risk import eager_module

__all__ = ["Transform", "owned_parameters"]


class Transform:
    """A change to what any ``torch.optim.Optimizer`` does, made from its own hooks: the loop stays as it was.

    ``before_step`` sees the gradients before the optimizer does and may edit ``.grad``; ``after_step`` sees the weights
    after it. Under ``torch.amp.GradScaler`` they are unscaled by then, and a skipped step calls neither. A subclass
    keeps its state in the tensors that ``state_dict`` returns, and its settings as attributes.

    Valid for optimizers that are stepped without a closure: one that evaluates gradients within its step (L-BFGS) would
    not see what was done to them.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of its parameters; any of ``torch.optim``, with any parameter groups.

    Raises:
        ValueError: the optimizer holds none of the model's parameters.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        if not owned_parameters(model, optimizer):
            raise ValueError(
                f"{type(self).__name__} needs an optimizer of the model's parameters; it holds none of them; "
                "build the optimizer from model.parameters() after the model was moved or wrapped"
            )
        self._skipped = False
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def before_step(self) -> None:
        """Edit the gradients; the default leaves them alone."""

    def after_step(self) -> None:
        """Edit the weights; the default leaves them alone."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors and numbers, fit for ``torch.load(weights_only=True)``; empty if there is none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned.

        Args:
            state_dict: that state.

        Raises:
            ValueError: it is the state of something else.
        """
        if state_dict:
            raise ValueError(
                f"{type(self).__name__} keeps no state; got {sorted(state_dict)}; load it where it is from"
            )

    def remove(self) -> None:
        """Take the hooks off; the optimizer and the model go on without this."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        """Return this, which is removed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks off."""
        self.remove()

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = type(self).__name__
        if any(argument is not None for argument in (*args[1:], kwargs.get("closure"))):
            raise ValueError(
                f"{name} needs optimizer.step() without a closure, for the gradients would be made anew after it; got "
                "one; evaluate the gradients before the step"
            )
        if getattr(optimizer, "grad_scale", None) is not None:  # a fused optimizer unscales within its own step
            raise ValueError(
                f"{name} needs unscaled gradients; got those of a GradScaler with a fused optimizer; "
                "call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        found_inf = getattr(optimizer, "found_inf", None)  # with it a fused optimizer skips within its own step
        self._skipped = found_inf is not None and bool(found_inf)
        if not self._skipped:
            with torch.no_grad():
                self.before_step()

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._skipped:
            with torch.no_grad():
                self.after_step()


def owned_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the model's parameters that the optimizer steps, by name; tied ones once.

    Args:
        model: the module.
        optimizer: the optimizer.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in eager_module(model).named_parameters() if id(parameter) in held}
