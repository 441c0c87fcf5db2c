from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.models.cnn import CNN
from normlens.optim.forward_graph import module_calls, trace_forward


def called(model: nn.Module) -> list[str]:
    graph = trace_forward(model, what="this", advice="do otherwise")
    return [node.target for node in graph.nodes if node.op == "call_module"]


def test_containers_are_entered_and_layers_are_steps():
    """Also layers that are not PyTorch's own, and a forward pass of the model's own."""
    block = [f"block{k}.{name}" for k in (1, 2) for name in ("conv", "norm", "relu")]
    expected = [*block[:3], "pool1", *block[3:], "average", "flatten", "head"]
    assert called(CNN((1, 8, 8), 10, norm="batch_norm", widths=(4, 6))) == expected


def test_wrappers_are_taken_off():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert called(nn.DataParallel(inner)) == called(inner) == ["0", "1"]


def test_the_place_of_every_call_is_known():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    graph = trace_forward(model, what="this", advice="do otherwise")
    calls = module_calls(graph, what="this", modules=frozenset({"0", "2", "never"}))
    assert {name: [user.target for user in node.users] for name, node in calls.items()} == {"0": ["1"], "2": ["output"]}


def test_a_layer_called_twice_is_refused():
    layer = nn.Linear(2, 2)
    graph = trace_forward(nn.Sequential(layer, nn.ReLU(), layer), what="this", advice="do otherwise")
    assert module_calls(graph, what="this", modules=frozenset({"1"})).keys() == {"1"}
    with pytest.raises(ValueError, match="needs every layer to run once in a forward pass; got 0, which runs twice"):
        module_calls(graph, what="this", modules=frozenset({"0"}))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_pass_that_depends_on_values_is_refused():
    with pytest.raises(ValueError, match=r"this needs a forward pass that torch.fx can follow; got Branch, .*; do"):
        trace_forward(Branch(), what="this", advice="do otherwise")


def test_nothing_is_computed_and_nothing_is_left():
    model = CNN((1, 8, 8), 10)
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.random.get_rng_state()
    called(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
