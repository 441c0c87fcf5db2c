"""What is captured is what the modules saw, channel by channel, and nothing of the capture stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlens.risk import EmpiricalRisk
from normlens.run.capture import Activation, capture, choose


class Calls(nn.Module):
    """A module whose forward pass is the given function of it."""

    def __init__(self, call: Callable[[Any, Any], Any], **children: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module, *batches: Any, mode: str | None = None) -> dict[str, Activation]:
    return capture(EmpiricalRisk(model, lambda outputs, targets: outputs.sum(), list(batches), mode=mode))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_inputs_and_outputs_are_those_of_the_forward_pass_in_network_order():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = normal(5, 3)
    found = captured(model, (x, x))
    assert list(found) == ["0", "1", "2"]
    for name, module in model.named_children():
        assert found[name].module is module
        assert torch.equal(found[name].input, x)
        x = module(x).detach()
        assert torch.equal(found[name].output, x)


def test_the_order_is_that_of_the_calls_and_a_block_stands_before_its_parts():
    model = Calls(
        lambda m, x: m.late(m.block(x)), late=nn.Linear(3, 3), unused=nn.ReLU(), block=nn.Sequential(nn.Linear(3, 3))
    )
    assert list(captured(model, (normal(2, 3), None))) == ["block", "block.0", "late"]


@pytest.mark.parametrize("count", [1, 3])
def test_the_input_of_an_in_place_module_is_the_value_before_it(count):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True), nn.Hardtanh(-0.1, 0.1, inplace=True))
    batches = [(normal(4, 3, seed=seed), None) for seed in range(count)]
    found = captured(model, *batches)
    before = torch.cat([model[0](x) for x, _ in batches]).detach()
    assert_close(found["1"].input, before, rtol=0, atol=0)
    assert_close(found["0"].output, before, rtol=0, atol=0)
    assert_close(found["1"].output, before.relu(), rtol=0, atol=0)
    assert_close(found["2"].input, before.relu(), rtol=0, atol=0)
    assert_close(found["2"].output, before.relu().clamp(-0.1, 0.1), rtol=0, atol=0)


def test_a_residual_added_in_place_does_not_reach_back():
    def block(m: Any, x: Tensor) -> Tensor:
        out = m.linear(x)
        out += x
        return m.head(out)

    model = Calls(block, linear=nn.Linear(3, 3), head=nn.Linear(3, 2))
    x = normal(4, 3)
    found = captured(model, (x, None))
    assert_close(found["linear"].output, model.linear(x).detach(), rtol=0, atol=0)
    assert_close(found["head"].input, (model.linear(x) + x).detach(), rtol=0, atol=0)


def test_a_shared_module_is_captured_at_every_call():
    model = Calls(lambda m, x: m.act(m.b(m.act(m.a(x)))), act=nn.ReLU(), a=nn.Linear(3, 4), b=nn.Linear(4, 5))
    x = normal(6, 3)
    found = captured(model, (x, None))
    assert list(found) == ["a", "act", "b", "act@2"]
    assert_close(found["act"].input, model.a(x).detach(), rtol=0, atol=0)
    assert_close(found["act@2"].input, model.b(model.a(x).relu()).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1), (1, 6)])
def test_batches_are_put_together_in_their_order(sizes):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    x = normal(7, 2, 5, 5)
    found = captured(model, *[(part, None) for part in x.split(sizes)], mode="eval")
    assert_close(found["1"].output, model.eval()[:2](x).detach(), rtol=1e-5, atol=1e-6)
    assert found["2"].input_samples.shape == (7, 9, 3)


def test_a_module_called_in_some_batches_only_is_captured_from_these():
    def loop(m: Any, x: Tensor) -> Tensor:
        for column in x.split(1, dim=1):
            x = m.cell(column)
        return x

    model = Calls(loop, cell=nn.Linear(1, 2))
    for first, second in ((2, 3), (3, 2)):
        found = captured(model, (normal(4, first), None), (normal(5, second), None))
        assert list(found) == ["cell", "cell@2", "cell@3"]
        assert [len(a.input) for a in found.values()] == [9, 9, 4 if first == 3 else 5]


def as_samples(channels_last: Tensor) -> Tensor:
    return channels_last.reshape(len(channels_last), -1, channels_last.shape[-1])


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Identity()])
def test_behind_a_linear_layer_the_channels_of_tokens_are_the_last_dimension(act):
    model = nn.Sequential(nn.Linear(3, 4), act, nn.LayerNorm(4), nn.Linear(4, 2))
    found = captured(model, (normal(5, 7, 3), None))
    for name, activation in found.items():
        assert (activation.input_channels, activation.output_channels) == (2, 2), name
    assert torch.equal(found["1"].input_samples, found["1"].input)
    assert found["3"].output_samples.shape == (5, 7, 2)


def test_behind_a_convolution_the_channels_are_dimension_one():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU())
    found = captured(model, (normal(5, 2, 2, 2), None))
    for name in "012":
        samples = found[name].output_samples
        assert torch.equal(samples, as_samples(found[name].output.permute(0, 2, 3, 1)))
    assert found["3"].output_samples.shape == (5, 1, 12)
    assert found["5"].input_samples.shape == (5, 1, 4)


def test_a_block_around_a_linear_layer_does_not_hide_its_layout():
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    found = captured(nn.Sequential(block, nn.Dropout(0.0)), (normal(5, 7, 4), None))
    assert found["0"].output_channels == 2
    assert found["1"].input_channels == 2


def test_a_linear_layer_knows_its_channels_whatever_came_before():
    model = Calls(lambda m, x: m.b(m.act(m.a(x) + x)), a=nn.Linear(4, 4), act=nn.ReLU(), b=nn.Linear(4, 2))
    assert captured(model, (normal(5, 7, 4), None))["b"].input_samples.shape == (5, 7, 4)


def test_a_layer_norm_over_channels_and_positions_keeps_the_channels_of_a_convolution():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.LayerNorm((3, 4, 5)), nn.ReLU())
    found = captured(model, (normal(6, 2, 4, 5), None))
    assert found["1"].output_samples.shape == (6, 20, 3)
    assert found["2"].input_samples.shape == (6, 20, 3)


def test_of_several_tensors_the_first_is_taken_and_of_none_nothing_is():
    model = Calls(
        lambda m, x: m.none(m.text(m.keyed(m.lstm(x)[0])["out"])),
        lstm=nn.LSTM(3, 4, batch_first=True),
        keyed=Calls(lambda m, x: {"note": "text", "out": x + 1}),
        text=Calls(lambda m, x: x),
        none=Calls(lambda m, x: None),
    )
    x = normal(2, 5, 3)
    found = captured(model, (x, None))
    assert list(found) == ["lstm", "keyed", "text"]
    out = model.lstm(x)[0].detach()
    assert_close(found["lstm"].output, out, rtol=1e-6, atol=1e-6)
    assert_close(found["keyed"].output, out + 1, rtol=1e-6, atol=1e-6)
    assert found["lstm"].output_channels == 2


def test_a_module_called_by_keyword_is_captured_too():
    model = Calls(lambda m, x: m.linear(input=x), linear=nn.Linear(3, 2))
    x = normal(4, 3)
    assert torch.equal(captured(model, (x, None))["linear"].input, x)


def test_a_call_whose_error_the_model_catches_does_not_mix_up_the_others():
    def attempt(m: Any, x: Tensor) -> Tensor:
        try:
            m.outer(x)
        except RuntimeError:
            return m.head(x)
        raise AssertionError("the wrong layer must raise")

    model = Calls(attempt, outer=nn.Sequential(nn.Linear(3, 5), nn.Linear(7, 2)), head=nn.Linear(3, 2))
    found = captured(Calls(lambda m, x: m.all(x), all=model), (normal(4, 3), None))
    assert list(found) == ["all", "all.outer.0", "all.head"]
    assert found["all"].output.shape == (4, 2)


def test_what_is_captured_shares_no_memory_with_the_user_s_tensors():
    kept: list[Tensor] = []
    model = Calls(lambda m, x: (kept.append(m.linear(x)), kept[-1])[1], linear=nn.Linear(3, 3))
    x = normal(4, 3)
    found = captured(model, (x, None))["linear"]
    pointers = {t.untyped_storage().data_ptr() for t in (x, *kept, *model.parameters())}
    assert not pointers & {found.input.untyped_storage().data_ptr(), found.output.untyped_storage().data_ptr()}
    assert not found.output.requires_grad


def test_no_hook_stays_behind_whether_the_forward_pass_ends_or_raises():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].register_forward_hook(lambda *_: None)
    captured(model, (normal(2, 3), None))
    assert hooks(model) == 1
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        captured(model, (normal(2, 3), None), (normal(2, 9), None))
    assert hooks(model) == 1


def test_empty_data_are_refused_and_leave_no_hook():
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"the probe data must hold at least one batch; got none \(an exhausted"):
        captured(model)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (None, ["a", "a.0", "a.1", "b"]),
        ("a*", ["a", "a.0", "a.1"]),
        (["b", "a.0"], ["a.0", "b"]),
        (lambda name, module: isinstance(module, nn.ReLU), ["a.1"]),
        (lambda name, module: False, []),
    ],
)
def test_layers_are_chosen_by_glob_names_or_predicate_in_network_order(layers, chosen):
    model = Calls(lambda m, x: m.b(m.a(x)), b=nn.Linear(4, 2), a=nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert list(choose(captured(model, (normal(2, 3), None)), layers)) == chosen


@pytest.mark.parametrize("layers", ["conv*", ["0", "conv*"]])
def test_a_pattern_that_matches_nothing_is_refused(layers):
    found = captured(nn.Sequential(nn.Linear(3, 4)), (normal(2, 3), None))
    with pytest.raises(ValueError, match=r"layers must match called modules; 'conv\*' matches none of \['0'\]"):
        choose(found, layers)
