"""StatDiff: the statistics of a normalization's output before its last affine map, against mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlens.information.moments import Moments
from normlens.run.capture import Activation
from normlens.run.reading import Reading

__all__ = ["statdiff_readings"]

_AFFINE = ("weight", "bias")
_LAST_OF_TWO = ("channel_weight", "channel_bias")  # batch-channel norm: `weight` and `bias` stand between its halves


def statdiff_readings(layer: str, activation: Activation) -> Iterator[Reading]:
    r"""Run a normalization again with its last affine map taken out, and compare its output with (0, 1).

    ``statdiff_mean`` :math:`\tfrac1C\sum_c|\mu_c|` and ``statdiff_std`` :math:`\tfrac1C\sum_c|\sigma_c - 1|`,
    dimensionless, over samples and positions of each channel. Of a layer with two affine maps (batch-channel norm) only
    the last one is taken out: the one between its halves decides what the second half does, so it belongs to the
    normalization as much as the data do.

    Args:
        layer: its name.
        activation: what entered it and what came out.
    """
    module = activation.module
    state = {name: buffer.clone() for name, buffer in module.named_buffers()} | _without_affine(module)
    with torch.no_grad():
        plain = functional_call(module, state, (activation.input,))
    moments = Moments.of(Activation(module, activation.input, plain, 1, activation.output_channels).output_samples)
    n = moments.count
    yield Reading("statdiff_mean", float(moments.mean.abs().mean()), layer=layer, n=n)
    yield Reading("statdiff_std", float((moments.std - 1).abs().mean()), layer=layer, n=n)


def _without_affine(module: nn.Module) -> dict[str, Tensor]:
    """Return ones and zeros for the parameters of the last affine map."""
    weight, bias = _LAST_OF_TWO if isinstance(getattr(module, _LAST_OF_TWO[0], None), Tensor) else _AFFINE
    found = {name: getattr(module, name, None) for name in (weight, bias)}
    made = {weight: torch.ones_like, bias: torch.zeros_like}
    return {name: made[name](tensor) for name, tensor in found.items() if isinstance(tensor, Tensor)}
