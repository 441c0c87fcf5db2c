"""Who writes and who reads a unit is read off the graph, or not said at all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.probes.unit_connections import Connections, connections


def act(model):
    return connections(model, ["act"]).get("act")


class Net(nn.Module):
    """Two convolutions with what a test puts between them."""

    def __init__(self, between=None, **modules: nn.Module) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)
        self.between = between or (lambda net, h: h)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.act(self.first(x))))


def test_a_plain_chain_is_known():
    assert act(Net()) == Connections("first", "", ("last",), True, False)


@pytest.mark.parametrize(
    "between",
    [
        lambda net, h: F.max_pool2d(F.dropout(h, 0.1), 2), lambda net, h: torch.tanh(h), lambda net, h: net.other(h),
        lambda net, h: h.relu(),
    ],
)  # fmt: skip
def test_what_keeps_units_apart_is_followed(between):
    for other in (nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Dropout2d(), nn.Tanh()):
        assert act(Net(between, other=other)).readers == ("last",)


@pytest.mark.parametrize(
    "between",
    [lambda net, h: h + 1, lambda net, h: h.flip(1), lambda net, h: net.other(h), lambda net, h: h + net.first(h)],
)
def test_behind_anything_else_the_readers_are_not_known(between):
    model = Net(between, other=nn.GroupNorm(2, 4))
    found = act(model)
    assert found is None or found.readers == ()


def test_norm_and_pooling_on_the_way_back_are_passed_and_a_second_norm_is_not():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.LayerNorm([4, 3, 3]), nn.ReLU())
    assert connections(model, ["3"])["3"] == Connections("0", "2", (), True, False)
    assert not connections(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()), ["3"])


def test_pooling_of_what_a_linear_layer_wrote_mixes_its_units():
    assert not connections(nn.Sequential(nn.Linear(4, 6), nn.AvgPool1d(2), nn.ReLU()), ["2"])
    later = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.AvgPool1d(2), nn.Linear(3, 2))
    assert connections(later, ["1"])["1"].readers == ()


def test_a_linear_layer_reads_an_image_only_when_it_is_flattened():
    def made(*between):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *between)

    flat = connections(made(nn.Flatten(), nn.Linear(4 * 9, 2)), ["1"])["1"]
    assert (flat.readers, flat.pooled) == (("3",), False)
    pooled = connections(made(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), ["1"])["1"]
    assert (pooled.readers, pooled.pooled) == (("4",), True)
    assert connections(made(nn.Linear(3, 2)), ["1"])["1"].readers == ()


def test_of_tokens_a_reader_takes_the_last_dimension_or_is_not_known():
    def made(*after):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *after)

    assert connections(made(nn.Flatten(), nn.Linear(6, 2)), ["1"])["1"].readers == ("3",)
    assert connections(made(nn.Flatten(), nn.Linear(5 * 6, 2)), ["1"])["1"].readers == ()  # five tokens in a row
    assert connections(made(nn.Conv1d(6, 2, 1)), ["1"])["1"].readers == ()  # tokens are its channels


def test_every_branch_counts_and_a_writer_that_is_heard_elsewhere_is_not_alone():
    class Branches(nn.Module):
        def __init__(self, residual: bool) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(3, 4), nn.ReLU()
            self.left, self.right, self.direct = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)
            self.residual = residual

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            h = self.act(z)
            return self.left(h) + self.right(h) + (self.direct(z) if self.residual else 0)

    assert act(Branches(False)) == Connections("first", "", ("left", "right"), True, False)
    assert act(Branches(True)) == Connections("first", "", ("left", "right"), False, False)


def test_layers_that_run_twice_or_have_no_weight_of_their_own_are_not_guessed():
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.last(self.act(self.first(x)))))

    assert act(Twice()) is None
    assert not connections(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU()), ["1"])
    assert not connections(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()), ["1"])


def test_a_forward_pass_that_cannot_be_followed_says_nothing():
    class Loop(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.first(x)) if bool(x.sum() > 0) else x

    assert connections(Loop(), ["act"]) == {}


def test_a_weight_layer_is_its_own_writer():
    model = Net(lambda net, h: F.relu(h))
    model.act = nn.Identity()
    assert connections(model, ["first"])["first"] == Connections("first", "", ("last",), True, False)
