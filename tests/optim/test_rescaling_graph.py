from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.models.cnn import CNN
from normlens.models.resnet import ResNet
from normlens.optim.rescaling_graph import Stream, find_streams


def test_the_pairs_of_a_chain_are_found_in_order():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.Flatten(),
        nn.BatchNorm1d(54), nn.ReLU(), nn.Linear(54, 5), nn.Dropout(), nn.PReLU(), nn.Linear(5, 2), nn.LogSoftmax(1),
    )  # fmt: skip
    assert find_streams(model) == (
        Stream(("0",), ("4",), ("1",)),
        Stream(("4",), ("8",), ("6",)),
        Stream(("8",), ("11",)),
    )


def test_the_cnn_is_a_chain():
    streams = find_streams(CNN((1, 8, 8), 10, norm="batch_norm"))
    assert [s.readers for s in streams] == [("block2.conv",), ("block3.conv",), ("head",)]
    assert [s.norms for s in streams] == [("block1.norm",), ("block2.norm",), ("block3.norm",)]


def test_all_that_writes_to_a_residual_stream_is_one_stream():
    first, inner, second, *_ = find_streams(ResNet((1, 8, 8), 10, norm="batch_norm", depth=8))
    assert set(first.writers) == {"stem.conv", "stage1.block1.branch.conv2"}
    assert set(first.norms) == {"stem.norm", "stage1.block1.branch.norm2"}
    assert first.readers == ("stage1.block1.branch.conv1", "stage2.block1.branch.conv1", "stage2.block1.shortcut.conv")
    assert inner.writers == ("stage1.block1.branch.conv1",)
    assert second.writers == ("stage2.block1.branch.conv1",)


class Functions(nn.Module):
    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Conv2d(1, 4, 3), nn.Linear(4, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def test_functions_are_followed_like_modules():
    between = lambda x: torch.flatten(F.adaptive_avg_pool2d(F.relu(x) + x.relu(), 1), 1)  # noqa: E731
    assert find_streams(Functions(between)) == (Stream(("first",), ("second",)),)


def test_a_stream_that_touches_the_input_keeps_its_scale():
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(torch.relu(self.a(x))) + x)

    assert find_streams(Around()) == (Stream(("a",), ("b",)),)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.LayerNorm(4), nn.Softmax(1)])
def test_what_is_not_homogeneous_is_refused_by_name(activation):
    model = nn.Sequential(nn.Linear(3, 4), activation, nn.Identity(), nn.Linear(4, 2))
    kind = type(activation).__name__
    with pytest.raises(ValueError, match=rf"positively homogeneous functions .* got {kind} \(1\) before 3; name the"):
        find_streams(model)


@pytest.mark.parametrize(
    ("between", "named"),
    [
        (lambda x: torch.tanh(x).flatten(1), "tanh"),
        (lambda x: (x + 1.0).flatten(1), "add"),
        (lambda x: F.avg_pool1d(x.flatten(1), 2), "avg_pool1d"),
        (lambda x: x.flatten(2), "flatten"),
    ],
)
def test_functions_that_are_not_homogeneous_are_refused_too(between, named):
    with pytest.raises(ValueError, match=f"got .*{named}.* before second"):
        find_streams(Functions(between))


def test_a_linear_layer_over_the_width_of_an_image_reads_no_channels():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"got Linear \(2\) before 4"):
        find_streams(model)


def test_pooling_over_the_channels_of_a_matrix_is_refused():
    model = nn.Sequential(nn.Linear(3, 8), nn.MaxPool1d(2), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"got MaxPool1d \(1\) before 2"):
        find_streams(model)


def test_groups_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match=r"got Conv2d \(1\) before 2"):
        find_streams(model)


def test_a_layer_that_runs_twice_is_refused():
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="every layer to run once in a forward pass; got 0, which runs twice"):
        find_streams(nn.Sequential(shared, nn.ReLU(), shared))


def test_one_layer_has_nothing_to_balance():
    with pytest.raises(ValueError, match="two weight layers in a row; got none in Sequential"):
        find_streams(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_a_forward_pass_that_depends_on_values_cannot_be_followed():
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        ValueError, match=r"forward pass that torch.fx can follow; got Branch.*name the streams yourself"
    ):
        find_streams(Branch())
