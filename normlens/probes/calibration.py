"""Calibration: what does noise on the weights cost, and how much of it do calibrated batch norms give back?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normlens.inference.batch_statistics import pooled_layers, stored_moments
from normlens.inference.calibration import calibrate_risk, pooled_moments
from normlens.inference.weight_noise import NoiseKind, WeightNoise
from normlens.nn.functional import Moments
from normlens.risk import EmpiricalRisk
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    r"""Accuracy and confidence under noisy weights, before and after the batch norms' statistics are taken anew.

    In eval mode on the probe data, in three states: ``clean``, ``noisy`` (one draw of
    :class:`normlens.inference.WeightNoise`) and ``calibrated`` (the same draw, after
    :func:`normlens.inference.calibrate_batchnorm`, layer by layer, on the inputs of the same data):

    * ``accuracy_…``, the share of samples whose largest output is their target, with its binomial standard error;
    * ``ece_…``, the expected calibration error :math:`\sum_b \tfrac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|` over
      bins of equal width in the largest softmax probability (error: that of the mean with the bins' signs held; few
      samples per bin bias it upward);
    * for each batch norm ``mean_shift_…`` :math:`\mathrm{mean}_c |\mu_c - m_c| / \sqrt{v_c + \epsilon}` and
      ``log_scale_…`` :math:`\mathrm{mean}_c \tfrac12 |\ln((\sigma_c^2 + \epsilon) / (v_c + \epsilon))|` between the
      moments :math:`\mu, \sigma^2` of its input and its running statistics :math:`m, v`. That of ``clean`` is what the
      running statistics are off without any noise; after calibration it is 0 by construction.

    A model without batch norms has nothing to calibrate: its calibrated state is the noisy one. The noise of the last
    layer stays in any case. All is dimensionless; samples with a negative target are left out.
    Source: Tsai et al., arXiv:2007.03230.

    Args:
        kind: of the noise.
        scale: of the noise; for ``gaussian`` in units of the largest weight of each tensor.
        bins: of the expected calibration error.
    """

    kind: NoiseKind = "gaussian"
    scale: float = 0.1
    bins: int = 15

    def cost(self, step: Step) -> float:
        """Three forward passes, and one for each batch norm."""
        return (3 + len(_layers(step.risk.model))) / 3

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: targets are no class indices, the outputs no tensor of one score per class, or a layer keeps
                running statistics of another sense than batch norm's.
        """
        risk = step.risk.evaluated()
        yield from self._state(risk, "clean")
        with WeightNoise(risk.model, self.kind, self.scale, generator=step.generator):
            yield from self._state(risk, "noisy")
            if _layers(risk.model):
                calibrate_risk(risk, layerwise=True)
            yield from self._state(risk, "calibrated")

    def _state(self, risk: EmpiricalRisk, state: str) -> Iterator[Reading]:
        layers, seen = _layers(risk.model), _Predictions()
        found = pooled_moments(risk, layers, use=seen.add)
        confidence, right = seen.result()
        n = len(right)
        accuracy = float(right.mean())
        yield Reading(f"accuracy_{state}", accuracy, error=math.sqrt(max(accuracy * (1 - accuracy), 0) / n), n=n)
        ece, error = _expected_calibration_error(confidence, right, self.bins)
        yield Reading(f"ece_{state}", ece, error=error, n=n)
        for name, layer in layers.items():
            shift, scale = _shift(found[name], layer)
            yield Reading(f"mean_shift_{state}", shift, layer=name, n=n)
            yield Reading(f"log_scale_{state}", scale, layer=name, n=n)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return pooled_layers(model, what="the probe calibration")


@dataclass
class _Predictions:
    """The largest probability of each sample, and whether it is the target's (1, 0; nan of nan), in float64."""

    confidence: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)

    def add(self, outputs: Any, targets: Any) -> None:
        _check(outputs, targets)
        scores = outputs.detach().cpu().double().movedim(1, -1).flatten(0, -2)
        wanted = targets.detach().cpu().flatten()
        confidence, predicted = scores.softmax(1).max(1)
        right = torch.where(confidence.isnan(), torch.nan, (predicted == wanted).double())
        known = wanted >= 0  # negative class indices are the convention for "ignore"
        self.confidence.append(confidence[known])
        self.right.append(right[known])

    def result(self) -> tuple[Tensor, Tensor]:
        if not sum(map(len, self.right)):
            raise ValueError("calibration needs at least one sample with a target of at least 0; got none; label some")
        return torch.cat(self.confidence), torch.cat(self.right)


def _check(outputs: object, targets: object) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ValueError(
            "calibration needs a classifier: it must return one tensor, (N, classes, ...); got "
            f"{type(outputs).__name__}; pass the lens a forward= that picks the scores"
        )
    shape = outputs.shape[:1] + outputs.shape[2:]
    integer = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.dtype == torch.bool)
    if not (isinstance(targets, Tensor) and integer and targets.shape == shape):
        came = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"calibration needs targets that are class indices, one integer for each prediction; got {came} for "
            f"outputs {tuple(outputs.shape)}; turn them into indices, or leave this probe out"
        )


def _expected_calibration_error(confidence: Tensor, right: Tensor, bins: int) -> tuple[float, float]:
    gap = right - confidence
    if gap.isnan().any():
        return math.nan, math.nan
    place = (confidence * bins).long().clamp(max=bins - 1)
    total = torch.zeros(bins, dtype=gap.dtype).index_add_(0, place, gap)
    signed = gap * total.sign()[place]
    return float(signed.mean()), float(signed.std() / math.sqrt(len(gap))) if len(gap) > 1 else math.nan


def _shift(found: Moments, layer: nn.Module) -> tuple[float, float]:
    """Return the shifts of mean and scale, averaged over channels; nan for a scale that the layer does not keep."""
    mean, var = (moment.cpu().double() for moment in stored_moments(layer))
    eps = float(getattr(layer, "eps", 0.0))
    scale = torch.ones_like(mean) if layer.running_var is None else (var + eps).sqrt()
    shift = (found.mean - mean).abs() / scale
    log_ratio = ((found.var + eps) / (var + eps)).log().abs() / 2
    return float(shift.mean()), float(log_ratio.mean())
