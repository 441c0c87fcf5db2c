"""Cancellation: how much of a weight's gradient do samples and places take back from each other?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.layer_passes import LayerPass, layer_passes
from normlens.probes.module_kinds import is_normalization
from normlens.probes.one_batch import at_the_mean, first_batch, training
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["Cancellation"]


@dataclass(frozen=True)
class Cancellation:
    r"""How far the contributions of samples and places to a weight's gradient cancel, for each weight layer.

    The gradient of one weight is a sum over samples b and places (x, y), :math:`\sum_{bxy} d_{bxy}`; of a convolution
    :math:`d_{bxy} = \delta_{b,o,x,y}\,h_{b,i,x+k,y+l}` with the gradient :math:`\delta` of its output and its input h.
    Averaged over weights drawn at random are

    * ``absolute`` :math:`\sum_{bxy} |d|`, ``by_sample`` :math:`\sum_b |\sum_{xy} d|`, ``by_place`` :math:`\sum_{xy}
      |\sum_b d|` and ``total`` :math:`|\sum_{bxy} d|`,
    * and what is lost: ``cancellation`` absolute / total, ``within_samples`` absolute / by_sample and
      ``across_samples`` absolute / by_place, ratios of the averages. At 1 all contributions have one sign.

    No ratio is below 1, nor above ``cancellation``; n contributions of one size and random sign make
    :math:`\sqrt{\pi n/2}` of it. A linear layer has places only where its input has (a sequence); else what counts
    them is left out. A layer that is called several times sums over its calls as over places. Errors are those of the
    draw of the weights: 0 where all were taken. On one batch, of which the normalizations use the statistics whatever
    the mode. ``layers`` is 0 where the model calls no linear layer or convolution.

    Source: Bjorck, Gomes, Selman and Weinberger, NeurIPS 2018, arXiv:1806.02375, the decomposition of the gradient.

    Args:
        samples: how many of the probe data.
        weights: how many of each layer at most.
    """

    samples: int = 256
    weights: int = 64

    def cost(self, step: Step) -> float:
        """A gradient, and sums over the batch for each drawn weight."""
        return 2.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``weights`` is below 2.
        """
        if self.weights < 2:
            raise ValueError(f"cancellation needs at least 2 weights of a layer; got {self.weights}; 64 is usual")
        calls: dict[str, list[LayerPass]] = {}
        if any(_is_summing(module) for module in step.risk.model.modules()):
            risk = first_batch(step.risk, self.samples)
            with at_the_mean(risk.model), training(risk.model, is_normalization):
                for call in layer_passes(risk, _is_summing):
                    calls.setdefault(call.name.partition("@")[0], []).append(call)
        if not calls:
            yield Reading("layers", 0.0)
        for layer, found in calls.items():
            yield from _readings(layer, found, self.weights, step.generator)


def contributions(call: LayerPass, weight: tuple[int, ...]) -> Tensor:
    """Return the contributions d to the gradient of one weight, (samples, places), float64.

    Args:
        call: of a linear layer or a convolution, with the gradient of its output.
        weight: its index: output channel, input channel (within its group), and place in the kernel.
    """
    module, h, delta = call.module, call.input, call.output_gradient
    assert delta is not None
    out, into, *place = weight
    if isinstance(module, nn.Linear):
        product = delta[..., out].double() * h[..., into].double()
    else:
        product = delta[:, out].double() * _seen(module, h, delta, out, into, place).double()
    return product.reshape(len(product), -1)


def _is_summing(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _seen(module: nn.Module, h: Tensor, delta: Tensor, out: int, into: int, place: list[int]) -> Tensor:
    """Return what one weight of a kernel is multiplied with, (N, *spatial of the output)."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    per_group = module.out_channels // module.groups
    channel = out // per_group * (module.in_channels // module.groups) + into
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    seen = functional.pad(h[:, channel : channel + 1], _margins(module), mode=mode)[:, 0]
    for axis, start in enumerate(place):
        stride, size = module.stride[axis], delta.shape[axis + 2]
        first = start * module.dilation[axis]
        seen = seen.narrow(axis + 1, first, (size - 1) * stride + 1)
        seen = seen[(slice(None),) * (axis + 1) + (slice(None, None, stride),)]
    return seen


def _margins(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Return the padding as :func:`torch.nn.functional.pad` takes it, the last dimension first."""
    margins: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if isinstance(module.padding, str):
            whole = 0 if module.padding == "valid" else module.dilation[axis] * (module.kernel_size[axis] - 1)
            margins += [whole // 2, whole - whole // 2]
        else:
            margins += [module.padding[axis]] * 2
    return margins


def _readings(layer: str, calls: list[LayerPass], most: int, generator: torch.Generator) -> Iterator[Reading]:
    shape, n = _shape(calls[0].module), len(calls[0].input)
    size = math.prod(shape)
    chosen = torch.arange(size) if size <= most else _drawn(size, most, generator)
    found = []
    for index in torch.stack(torch.unravel_index(chosen, shape), 1).tolist():
        parts = torch.cat([contributions(call, tuple(index)) for call in calls], 1)
        found.append(_sums(parts))
    shown = len(found[0]) if parts.shape[1] > 1 else 2
    sums = torch.stack([torch.stack(each[:shown]) for each in found], 1).cpu()
    left = math.sqrt(1 - len(chosen) / size)  # of the error where the weights are drawn without putting back
    for name, values in zip(("absolute", "total", "by_sample", "by_place")[:shown], sums, strict=True):
        yield Reading(name, float(values.mean()), error=_error(values, left), layer=layer, n=n)
    for name, values in zip(("cancellation", "within_samples", "across_samples")[: shown - 1], sums[1:], strict=True):
        ratio = sums[0].mean() / values.mean()
        error = _error((sums[0] - ratio * values) / values.mean(), left)  # of a ratio of means
        yield Reading(name, float(ratio), error=error, layer=layer, n=n)


def _error(values: Tensor, left: float) -> float:
    """Return the standard error of the mean over the drawn weights: nan where not known, 0 if all were taken."""
    if not bool(values.isfinite().all()) or (left and len(values) < 2):
        return math.nan
    return left * float(values.std() / math.sqrt(len(values))) if left else 0.0


def _drawn(size: int, most: int, generator: torch.Generator) -> Tensor:
    """Return up to so many different indices; of few draws from many hardly one is drawn twice."""
    return torch.tensor(sorted(set(torch.randint(size, (most,), generator=generator).tolist())))


def _shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return module.out_channels, module.in_channels // module.groups, *module.kernel_size


def _sums(parts: Tensor) -> tuple[Tensor, ...]:
    """Return the sums of (samples, places): of all magnitudes; magnitude of all; of each sample's; of each place's."""
    return parts.abs().sum(), parts.sum().abs(), parts.sum(1).abs().sum(), parts.sum(0).abs().sum()
