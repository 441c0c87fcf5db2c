"""The last optimizer step, parameter by parameter, for probes that ask for it."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.risk import eager_module
from normlens.typing import Named

__all__ = ["UpdateTracker"]


class UpdateTracker:
    """Copies the parameters before a step that will be measured, and subtracts them after it.

    Hooking the optimizer would be cheaper to write and is what P1 forbids: nothing of ours takes part in the training.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._before: dict[str, Tensor] | None = None
        self._at = 0

    def remember(self, step: int) -> None:
        """Copy the parameters as they are now.

        Args:
            step: which optimizer step this is.
        """
        self._at = step
        self._before = {name: p.detach().clone() for name, p in eager_module(self._model).named_parameters()}

    def take(self, step: int) -> Named | None:
        """Return the change by the one step since :meth:`remember`, once; None if that was no step ago, or several.

        Args:
            step: which optimizer step this is.
        """
        before, self._before = self._before, None
        if before is None or step != self._at + 1:
            return None
        now = eager_module(self._model).named_parameters()
        return {name: p.detach() - before[name] for name, p in now if name in before}
