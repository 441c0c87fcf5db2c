"""Whatever a forward pass does to a module's attributes is undone; what it leaves alone stays the very same object."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import nn

from normlens.module_state import preserved_attributes


class Hoarder(nn.Module):
    """Does to its attributes all that real modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.calls = 0
        self.outputs = [torch.ones(1)]
        self.by_name = {"a": torch.ones(1), "b": torch.zeros(1)}
        self.renamed = {"old": torch.ones(1)}
        self.kinds = {1, 2}
        self.ordered = collections.OrderedDict(x=1, y=2)
        self.counter = collections.Counter("aab")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.outputs.append(x)
        self.by_name["a"] = x
        self.renamed["new"] = self.renamed.pop("old")
        self.kinds.add(3)
        self.ordered.move_to_end("x")
        self.counter.update("ab")
        self.fresh = x
        self.inner.weight_seen = x
        return self.inner(x)


def snapshot(module: nn.Module) -> dict[str, object]:
    """Identities of attributes, and of what is in containers, in order."""
    found: dict[str, object] = {}
    for name, value in vars(module).items():
        items = list(value.items()) if isinstance(value, dict) else list(value) if isinstance(value, list | set) else []
        found[name] = (id(value), [[id(x) for x in i] if isinstance(i, tuple) else id(i) for i in items])
    return found


def test_every_attribute_and_container_of_every_submodule_is_put_back():
    model = nn.Sequential(Hoarder(), nn.Dropout())
    before = [snapshot(module) for module in model.modules()]
    values = dict(model[0].counter)
    with preserved_attributes(model):
        model.eval()
        model(torch.ones(1, 2))
        model[0].outputs = "rebound"
        del model[0].calls
        model[1].p = 0.9
    assert [snapshot(module) for module in model.modules()] == before
    assert dict(model[0].counter) == values
    assert model.training
    assert model[1].p == 0.5


def test_hooks_submodules_parameters_and_buffers_added_in_the_block_are_gone():
    model = nn.Sequential(nn.Linear(2, 2))
    with preserved_attributes(model):
        model[0].register_forward_hook(lambda *_: None)
        model.add_module("late", nn.ReLU())
        model[0].register_parameter("extra", nn.Parameter(torch.ones(1)))
        model.register_buffer("table", torch.ones(1))
    assert [name for name, _ in model.named_modules()] == ["", "0"]
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert not list(model.buffers())
    assert not model[0]._forward_hooks


def test_modes_come_back_one_by_one_and_not_all_alike():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    with preserved_attributes(model):
        model.train()
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_a_rebound_weight_is_the_old_tensor_again():
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    weight = layer.weight
    with preserved_attributes(layer):
        layer(torch.ones(1, 3))
        assert layer.weight is not weight
    assert layer.weight is weight


def test_everything_comes_back_when_the_block_raises():
    model = Hoarder()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="stop"), preserved_attributes(model):
        model(torch.ones(1, 2))
        raise RuntimeError("stop")
    assert snapshot(model) == before


def test_restoring_never_asks_the_user_s_objects_whether_they_are_equal():
    class Unequal:
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared by value")

    model = nn.Identity()
    model.things, model.table = [Unequal(), Unequal()], {"k": Unequal()}
    first = model.things[0]
    with preserved_attributes(model):
        model.things.reverse()
        model.table["k"] = Unequal()
    assert model.things[0] is first


def test_a_generator_that_a_module_holds_goes_on_where_it_was():
    model, generator = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.Generator().manual_seed(4)
    model[0].source = model[1].source = generator
    expected = torch.rand(3, generator=torch.Generator().manual_seed(4))
    with preserved_attributes(model):
        torch.rand(7, generator=generator)
    assert torch.equal(torch.rand(3, generator=generator), expected)
