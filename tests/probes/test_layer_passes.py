"""Inputs and gradients of layers against autograd, whatever is done in place and however often a layer is called."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from normlens.probes.layer_passes import layer_passes
from normlens.probes.module_kinds import is_weight_layer
from normlens.risk import EmpiricalRisk


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()


X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).sin()
Y = torch.arange(6) % 3


def passes(model, chosen=is_weight_layer):
    return layer_passes(EmpiricalRisk(model, functional.cross_entropy, (X, Y), mode="train"), chosen)


def test_inputs_and_gradients_are_those_before_what_is_done_in_place_afterwards():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)))
    first, last = passes(model)
    a = model[0](X)
    h = a.relu()
    out = model[2](h)
    expected = torch.autograd.grad(functional.cross_entropy(out, Y), [a, h, out])
    assert (first.name, last.name) == ("0", "2")
    assert first.input_gradient is None
    assert_close([first.output_gradient, last.input_gradient, last.output_gradient], list(expected))
    assert_close([first.input, last.input], [X, h.detach()])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_is_called_again_appears_again_and_one_without_influence_does_not():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 9), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(input=self.layer(x))
            self.unused(h)
            return self.head(h)

    assert [call.name for call in passes(seeded(Twice))] == ["layer", "layer@2", "head"]


def test_a_checkpointed_block_is_seen_once():
    class Checkpointed(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.first, self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.again = again

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = checkpoint(self.inner, h, use_reentrant=False) if self.again else self.inner(h)
            return self.head(h)

    plain, again = ({c.name: c for c in passes(seeded(lambda again=again: Checkpointed(again)))} for again in (0, 1))
    assert list(again) == list(plain) == ["first", "inner", "head"]
    for name, call in again.items():
        assert_close(call.output_gradient, plain[name].output_gradient)
