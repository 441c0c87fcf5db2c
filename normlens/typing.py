"""The words that the signatures use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Batch", "Data", "Loss", "Params", "Schedule"]

Batch: TypeAlias = Any
"""A pair ``(inputs, targets)``, a mapping, or anything the model's ``forward`` takes."""

Data: TypeAlias = "Batch | Iterable[Batch]"
"""One batch, a sequence of batches, or a loader that can be iterated again."""

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""``loss(outputs, targets)`` -> the mean over the batch, a scalar tensor."""

Params: TypeAlias = "str | Iterable[str] | Callable[[str, torch.nn.Parameter], bool] | None"
"""Which parameters: a glob, names, a predicate ``(name, tensor) -> bool``, or None for every trainable one."""

Schedule: TypeAlias = Callable[[int], bool]
"""``schedule(step)`` -> whether to measure after that many optimizer steps; a pure function of the step."""

Named: TypeAlias = Mapping[str, Tensor]
"""Tensors by the name of their parameter or buffer."""
