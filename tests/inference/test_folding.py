"""A folded layer is the layer and the norm behind it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion
from torch.testing import assert_close

from normlens.inference import fold_batchnorm, fold_batchnorms
from normlens.inference.folding import eval_affine
from normlens.nn import (
    BatchKalmanNorm,
    BatchNorm,
    BatchRenorm,
    CrossIterationBatchNorm,
    GhostBatchNorm,
    IndependentComponent,
    InstanceEnhancementBatchNorm,
    MeanOnlyBatchNorm,
)

EPS = torch.finfo(torch.float64).eps
# An output sums up to 36 products of numbers of order one, scaled by up to some tens: a few hundred roundings.
CLOSE = {"rtol": 500 * EPS, "atol": 500 * EPS}

LAYERS = {
    "linear": (nn.Linear(6, 8), (5, 6)),
    "linear without bias": (nn.Linear(6, 8, bias=False), (5, 6)),
    "conv1d": (nn.Conv1d(4, 8, 3, padding=1), (5, 4, 7)),
    "conv2d": (nn.Conv2d(4, 8, 3, padding=2, padding_mode="circular"), (5, 4, 6, 6)),
    "conv2d without bias": (nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), (5, 4, 6, 6)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=4, dilation=2), (5, 4, 6, 6)),
    "depthwise without bias": (nn.Conv2d(8, 8, 3, groups=8, bias=False), (5, 8, 6, 6)),
    "conv3d": (nn.Conv3d(2, 8, 2), (3, 2, 4, 4, 4)),
}
NORMS = [
    BatchNorm, GhostBatchNorm, BatchRenorm, CrossIterationBatchNorm, BatchKalmanNorm, MeanOnlyBatchNorm,
    IndependentComponent,
]  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("affine", [True, False])
def test_a_folded_layer_computes_what_both_did(kind, affine, settle, draw):
    layer, shape = LAYERS[kind]
    layer, norm = settle(layer, 1), settle(BatchNorm(8, affine=affine), 2)
    folded = fold_batchnorm(layer, norm)
    assert type(folded) is type(layer)
    assert_close(folded(draw(*shape)), norm(layer(draw(*shape))), **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_that_is_affine_in_eval_mode_can_be_folded(norm, settle, draw):
    layer, norm = settle(nn.Linear(6, 8), 1), settle(norm(8), 2)
    assert_close(fold_batchnorm(layer, norm)(draw(5, 6)), norm(layer(draw(5, 6))), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_pytorch_s_own_fusion_of_convolutions(groups, settle):
    layer, norm = settle(nn.Conv2d(4, 8, 3, groups=groups), 1), settle(nn.BatchNorm2d(8), 2)
    ours, theirs = fold_batchnorm(layer, norm), fusion.fuse_conv_bn_eval(layer, norm)
    assert_close(ours.weight, theirs.weight, rtol=8 * EPS, atol=0)
    assert_close(ours.bias, theirs.bias, **CLOSE)


def test_scale_and_shift_are_the_layer_s_answers_at_0_and_1(settle):
    for kind in NORMS:
        norm = settle(kind(5))
        scale, shift = eval_affine(norm, what="a test")
        zero, one = norm(torch.zeros(1, 5).double()), norm(torch.ones(1, 5).double())
        assert_close(shift, zero[0], **CLOSE)
        assert_close(scale, (one - zero)[0], **CLOSE)


def test_half_precision_is_rounded_once(settle, draw):
    layer, norm = settle(nn.Linear(6, 8), 1).half(), settle(BatchNorm(8), 2).half()
    scale, shift = eval_affine(norm, what="a test")
    folded = fold_batchnorm(layer, norm)
    assert torch.equal(folded.weight, (layer.weight.double() * scale[:, None]).half())
    assert torch.equal(folded.bias, (shift + scale * layer.bias.double()).half())


def test_layer_and_norm_stay_as_they_are(settle, state_of):
    pair = nn.Sequential(settle(nn.Linear(6, 8, bias=False), 1), settle(BatchNorm(8), 2)).eval()
    before = state_of(pair)
    fold_batchnorm(pair[0], pair[1])
    assert state_of(pair) == before


def test_in_a_model_neighbors_are_folded_and_all_else_is_left_alone(settle, draw):
    shared = BatchNorm(4)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), BatchNorm(4)),
        nn.BatchNorm2d(4),  # behind a block, not behind a layer
        nn.Conv2d(4, 4, 1), shared, nn.Conv2d(4, 4, 1), shared,
        nn.ConvTranspose2d(4, 4, 2), BatchNorm(4),
        nn.Conv2d(4, 4, 1), InstanceEnhancementBatchNorm(4),
        nn.Conv2d(4, 4, 1), BatchNorm(4, track_running_stats=False),
    )  # fmt: skip
    settle(model)
    x = draw(3, 1, 8, 8)
    expected = model(x)
    assert fold_batchnorms(model) is model
    norms = [type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__]
    assert norms == ["BatchNorm2d", "BatchNorm", "BatchNorm", "InstanceEnhancementBatchNorm", "BatchNorm"]
    assert sum(isinstance(module, nn.Identity) for module in model.modules()) == 2
    # Several layers deep, each of which may magnify a rounding by some tens.
    assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


class NormAndReLU(nn.BatchNorm1d):
    """A batch norm that does more than it is called."""

    def forward(self, x):
        return super().forward(x).relu()


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_what_it_derives_from(settle, draw):
    model = settle(nn.Sequential(nn.Linear(4, 8), NormAndReLU(8)))
    expected = model(draw(5, 4))
    assert torch.equal(fold_batchnorms(model)(draw(5, 4)), expected)
    with pytest.raises(ValueError, match="one scale and one shift per channel"):
        fold_batchnorm(model[0], model[1])


def test_where_one_pair_cannot_be_folded_none_is(settle, state_of):
    model = settle(nn.Sequential(nn.Linear(4, 8), BatchNorm(8), nn.Linear(8, 8), BatchNorm(8)))
    model[3].train()
    before = state_of(model)
    with pytest.raises(ValueError, match="norm in eval mode"):
        fold_batchnorms(model)
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("layer", "norm", "said"),
    [
        (nn.ConvTranspose2d(4, 8, 3), BatchNorm(8).eval(), "Conv1d to Conv3d.*got ConvTranspose2d"),
        (nn.Embedding(4, 8), BatchNorm(8).eval(), "got Embedding"),
        (nn.Linear(4, 8), BatchNorm(8), "norm in eval mode.*got train"),
        (nn.Linear(4, 8), BatchNorm(4).eval(), "8 output channels; got 4"),
        (nn.Linear(4, 8), BatchNorm(8, track_running_stats=False).eval(), "with running statistics"),
        (nn.Linear(4, 8), nn.LayerNorm(8).eval(), "one scale and one shift per channel"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), BatchNorm(8).eval(), "plain weight"),
    ],
)
def test_what_cannot_be_folded_is_refused(layer, norm, said):
    with pytest.raises(ValueError, match=said):
        fold_batchnorm(layer, norm)
