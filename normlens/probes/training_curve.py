"""TrainingCurve: does it learn, and how large are its steps?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["TrainingCurve"]


@dataclass(frozen=True)
class TrainingCurve:
    r"""Loss, accuracy, gradient norm, update norm and learning rate.

    On the fixed probe data: ``loss`` :math:`L(\theta)`, ``accuracy`` (the share of samples whose largest output is
    their target, with its binomial standard error; left out where targets are no class indices) and
    ``gradient_norm`` :math:`\lVert\nabla L(\theta)\rVert_2` over all trainable parameters. Of the training itself:
    ``batch_loss`` as passed to ``lens.step``, ``update_norm`` :math:`\lVert\theta_t - \theta_{t-1}\rVert_2` and the
    first parameter group's ``learning_rate``. A loss that is not finite is recorded as such.
    """

    uses_update: ClassVar[bool] = True

    def cost(self, step: Step) -> float:
        """Two gradients: one for itself, two forward passes for loss and accuracy."""
        return 2.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``."""
        yield Reading("loss", step.risk.loss().item())
        yield from _accuracy(step)
        yield Reading("gradient_norm", _norm(step.risk.gradient()))
        if step.loss is not None:
            yield Reading("batch_loss", step.loss)
        if step.update is not None:
            yield Reading("update_norm", _norm(step.update))
        if step.optimizer is not None:
            yield Reading("learning_rate", float(step.optimizer.param_groups[0]["lr"]))


def _accuracy(step: Step) -> Iterator[Reading]:
    right = counted = 0
    for outputs, targets in step.risk.outputs():
        if not _is_classification(outputs, targets):
            return
        known = targets >= 0  # negative class indices are the convention for "ignore"
        right += int((outputs.argmax(1) == targets)[known].sum())
        counted += int(known.sum())
    if counted:
        p = right / counted
        yield Reading("accuracy", p, error=math.sqrt(p * (1 - p) / counted), n=counted)


def _is_classification(outputs: object, targets: object) -> bool:
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.ndim == targets.ndim + 1
        and outputs.ndim >= 2
        and outputs.shape[:1] + outputs.shape[2:] == targets.shape  # classes are dimension 1, as in cross_entropy
        and not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    )


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors.values()))
