"""QuantizationError: how many steps of an 8-bit output is each batch norm off when it computes in integers?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from normlens.inference.folding import eval_affine, is_affine_in_eval
from normlens.inference.quantization import QuantizedBatchNorm
from normlens.run.capture import Activation, Layers, capture, choose
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["QuantizationError"]


@dataclass(frozen=True)
class QuantizationError:
    r"""Error of each batch norm in integers against the one in real numbers, in steps of its output (LSB).

    In eval mode on the probe data, input and output of a layer are each given one scale, the observed range being
    :math:`\pm X` with :math:`X = 2^{\mathrm{bits}-1} - 1`: :math:`s_x = \max|x| / X`, :math:`s_y = \max|y| / X`. The
    error of :class:`normlens.inference.QuantizedBatchNorm` on the rounded input is

    .. math:: e = q(\lfloor x / s_x \rceil) - y / s_y,

    read as ``rms`` and ``max`` of :math:`|e|` over all values, and ``channel_rms`` for each channel. Where the rounding
    errors of both sides are spread evenly, :math:`\mathrm{rms}_c^2 = (1 + k_c^2)/12` for the gain :math:`k_c = \gamma_c
    s_x / (s_y\sqrt{\sigma_c^2 + \epsilon})`, and without clipping :math:`\max_c \le (1 + |k_c|)/2` in any case.
    ``shift`` is the smallest exact common shift; ``inexact`` the channels for which 31 are too few. ``layers`` counts
    the batch norms, 0 where the model has none that is one scale and one shift per channel.
    Source: Lin et al., arXiv:2008.13128.

    Args:
        bits: of input and output, 2 to 16.
        layers: which batch norms; None for all.
    """

    bits: int = 8
    layers: Layers = None

    def cost(self, step: Step) -> float:
        """A forward pass, and a search of half a millisecond (at 8 bits) for each channel."""
        return 1.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``bits`` is out of range, the model or an activation is not finite, or ``layers`` names nothing.
        """
        if not 2 <= self.bits <= 16:
            raise ValueError(f"quantization_error needs bits from 2 to 16; got {self.bits}; 8 is usual")
        if not all(bool(parameter.isfinite().all()) for parameter in step.risk.model.parameters()):
            raise ValueError("parameters must be finite to be quantized; some are not: measure before they diverge")
        chosen = _batch_norms(step, self.layers)
        yield Reading("layers", float(len(chosen)))
        for name, activation in chosen.items():
            yield from _errors(name, activation, 2 ** (self.bits - 1) - 1)


def _batch_norms(step: Step, layers: Layers) -> Mapping[str, Activation]:
    if not any(is_affine_in_eval(module) for module in step.risk.model.modules()):
        return {}
    # In eval mode the step's own activations serve, which other probes use too.
    every = step.activations(None) if step.risk.mode == "eval" else capture(step.risk.evaluated())
    return {name: a for name, a in choose(every, layers).items() if is_affine_in_eval(a.module)}


def _errors(layer: str, activation: Activation, largest: int) -> Iterator[Reading]:
    moved = activation.input.movedim(1, -1)  # a batch norm's channels, whatever the layer before makes of dimension 1
    x, (scale, shift) = moved.reshape(len(moved), -1, moved.shape[-1]).cpu().double(), _affine(activation.module)
    y = scale * x + shift
    if not y.isfinite().all():
        raise ValueError(f"activations must be finite to be quantized; those of {layer} are not: measure before that")
    quantized, integers, unit = _quantize(activation.module, x, y, largest)
    error = quantized(integers.flatten(0, 1)).view_as(y) - y / unit
    n = len(x)
    yield Reading("rms", float(error.square().mean().sqrt()), layer=layer, units="LSB", n=n)
    yield Reading("max", float(error.abs().max()), layer=layer, units="LSB", n=n)
    channel_rms = error.square().mean((0, 1)).sqrt().numpy()
    yield Reading("channel_rms", channel_rms, layer=layer, units="LSB", dims=("channel",), n=n)
    yield Reading("shift", float(quantized.shift), layer=layer)
    yield Reading("inexact", float(quantized.inexact), layer=layer)


def _quantize(norm: nn.Module, x: Tensor, y: Tensor, largest: int) -> tuple[QuantizedBatchNorm, Tensor, float]:
    """Return the layer in integers, its input in integers, and the step of its output."""
    s_x, s_y = ((float(values.abs().max()) or 1.0) / largest for values in (x, y))
    quantized = QuantizedBatchNorm.from_float(norm, s_x, s_y, largest, -largest, largest).cpu()
    return quantized, (x / s_x).round().clamp(-largest, largest).long(), s_y


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale, shift = eval_affine(norm, what="quantization_error")
    return scale.cpu(), shift.cpu()
