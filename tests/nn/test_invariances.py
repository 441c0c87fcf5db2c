"""Which change of weights or data each layer does not see: the table of Ba, Kiros and Hinton 2016, and its two ends.

A layer stands behind a weight layer without bias, ``a = W x``, and in train mode with ``eps=0``. A yes is equality to
rounding, a no a change of the output by more than a tenth. Each entry follows in a line: what multiplies or shifts all
that one statistic pools is divided or taken away again, and nothing else is.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from normlens.nn import (
    BatchNorm,
    BatchRenorm,
    DynamicTanh,
    GhostBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    MeanOnlyBatchNorm,
    RMSNorm,
    ScaleNorm,
)
from normlens.nn.functional import per_channel

SAMPLES, INPUTS, CHANNELS = 8, 5, 6
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
FROZEN = {"r_max": math.inf, "d_max": math.inf, "warmup_steps": 0, "r_max_steps": 0, "d_max_steps": 0}

COLUMNS = ["W <- 2.5 W", "w_i <- c_i w_i", "w_i <- w_i + v", "x <- 2.5 x", "x <- x + c", "x_n <- c_n x_n"]
TABLE = {
    BatchNorm: ["yes", "yes", "no", "yes", "yes", "no"],
    GhostBatchNorm: ["yes", "yes", "no", "yes", "yes", "no"],
    BatchRenorm: ["yes", "yes", "no", "yes", "yes", "no"],
    "BatchRenorm without limits": ["no", "no", "no", "no", "no", "no"],
    MeanOnlyBatchNorm: ["no", "no", "no", "no", "yes", "no"],
    LayerNorm: ["yes", "no", "yes", "yes", "no", "yes"],
    GroupNorm: ["yes", "no", "yes", "yes", "no", "yes"],
    InstanceNorm: ["yes", "yes", "no", "yes", "yes", "yes"],
    RMSNorm: ["yes", "no", "no", "yes", "no", "yes"],
    ScaleNorm: ["yes", "no", "no", "yes", "no", "yes"],
    DynamicTanh: ["no", "no", "no", "no", "no", "no"],
}
SETTINGS = {GhostBatchNorm: {"ghost_size": 4}, GroupNorm: {"groups": 2}}
SPACE = {InstanceNorm: (4,)}  # it has no meaning without
ENTRIES = [
    pytest.param(layer, column, answer, id=f"{getattr(layer, '__name__', layer)}: {column}: {answer}")
    for layer, row in TABLE.items()
    for column, answer in zip(COLUMNS, row, strict=True)
]


def make(layer):
    """The layer with exact statistics; some have no ``eps``."""
    if isinstance(layer, str):
        return BatchRenorm(CHANNELS, eps=0.0, dtype=torch.float64, **FROZEN)
    exact = {} if layer in {MeanOnlyBatchNorm, DynamicTanh} else {"eps": 0.0}
    return layer(CHANNELS, dtype=torch.float64, **exact, **SETTINGS.get(layer, {}))


def apply(layer, weight, x):
    """The layer on ``W x`` at every position."""
    return make(layer)(torch.einsum("cd,nd...->nc...", weight, x))


def changed(column, weight, x, draw):
    """Weights ``(C, D)`` and data ``(N, D, *spatial)`` after the change that the column names."""
    per_row, shift, per_sample = draw(CHANNELS, 1).exp(), draw(1, INPUTS), draw(SAMPLES).exp()
    return {
        "W <- 2.5 W": (2.5 * weight, x),
        "w_i <- c_i w_i": (per_row * weight, x),
        "w_i <- w_i + v": (weight + shift, x),
        "x <- 2.5 x": (weight, 2.5 * x),
        "x <- x + c": (weight, x + per_channel(shift, x)),
        "x_n <- c_n x_n": (weight, per_sample.reshape(-1, *[1] * (x.dim() - 1)) * x),
    }[column]


@pytest.mark.parametrize(("layer", "column", "answer"), ENTRIES)
def test_the_output_is_invariant_where_the_table_says_so_and_only_there(draw, layer, column, answer):
    weight, x = draw(CHANNELS, INPUTS), draw(SAMPLES, INPUTS, *SPACE.get(layer, ())) + 0.5
    before, after = apply(layer, weight, x), apply(layer, *changed(column, weight, x, draw))
    if answer == "yes":
        assert_close(after, before, **CLOSE)
    else:
        assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize("layer", [layer for layer, row in TABLE.items() if row[0] == "yes"])
def test_where_the_scale_of_the_weights_is_not_seen_they_are_normal_to_the_gradient_and_an_eigenvector_of_curvature(
    draw, double_backward, layer
):
    """``<W, dL/dW> = 0``, ``dL/dW (c W) = dL/dW (W) / c``, ``H W = -dL/dW`` and ``H (c W) = H (W) / c^2``."""
    space = SPACE.get(layer, ())
    x, readout = draw(SAMPLES, INPUTS, *space), draw(SAMPLES, CHANNELS, *space)
    weight, v = draw(CHANNELS, INPUTS), draw(CHANNELS, INPUTS)

    def loss(weight):
        return (torch.tanh(apply(layer, weight, x)) * readout).sum()

    gradients = [torch.autograd.grad(loss(w), w)[0] for w in (leaf(weight), leaf(3 * weight))]
    assert abs(float((weight * gradients[0]).sum())) < 1e-12 * float(weight.norm() * gradients[0].norm())
    assert_close(gradients[1], gradients[0] / 3, **CLOSE)
    (along,), (here,), (there,) = (
        double_backward(loss, (at,), (u,)) for at, u in ((weight, weight), (weight, v), (3 * weight, v))
    )
    assert_close(along, -gradients[0], rtol=1e-11, atol=1e-11)
    assert_close(there, here / 9, rtol=1e-11, atol=1e-11)


def leaf(tensor):
    return tensor.clone().requires_grad_()


@pytest.mark.parametrize("layer", [LayerNorm, GroupNorm])
def test_with_space_a_vector_in_every_row_is_seen_since_it_shifts_positions_apart(draw, layer):
    weight, x, shift = draw(CHANNELS, INPUTS), draw(SAMPLES, INPUTS, 4), draw(1, INPUTS)
    before, after = (apply(layer, w, x) for w in (weight, weight + shift))
    assert (after - before).abs().max() > 0.1
    constant = x[..., :1].expand_as(x)  # the same at every position: nothing to tell apart
    before, after = (apply(layer, w, constant) for w in (weight, weight + shift))
    assert_close(after, before, **CLOSE)


def test_on_samples_of_mean_zero_layer_norm_is_root_mean_square_norm(draw):
    a = draw(SAMPLES, CHANNELS)
    centered = a - a.mean(1, keepdim=True)
    assert_close(make(LayerNorm)(centered), make(RMSNorm)(centered), **CLOSE)


def test_layer_norm_and_batch_norm_are_one_another_on_the_transpose(draw):
    a = draw(CHANNELS, CHANNELS)
    assert_close(make(LayerNorm)(a), make(BatchNorm)(a.T).T, **CLOSE)
