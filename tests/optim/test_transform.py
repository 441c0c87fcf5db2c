from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlens.optim.transform import Transform, owned_parameters


class Watching(Transform):
    """Writes down when it is called and what it sees, and doubles gradients if told."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
        super().__init__(model, optimizer)
        self.factor, self.seen = factor, []

    def before_step(self) -> None:
        assert not torch.is_grad_enabled()
        self.seen.append(("before", self.model.weight.detach().clone(), self.model.weight.grad.clone()))
        for parameter in self.model.parameters():
            parameter.grad.mul_(self.factor)

    def after_step(self) -> None:
        assert not torch.is_grad_enabled()
        self.seen.append(("after", self.model.weight.detach().clone()))


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(3, 2).double()


def test_gradients_are_seen_before_and_weights_after_the_step(layer: nn.Linear, draw: Callable[..., Tensor]) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    start = layer.weight.detach().clone()
    with Watching(layer, optimizer, factor=3.0) as transform:
        layer(draw(4, 3)).square().sum().backward()
        optimizer.step()
    (first, weight, grad), (second, stepped) = transform.seen
    assert (first, second) == ("before", "after")
    assert torch.equal(weight, start)
    torch.testing.assert_close(stepped, start - 0.1 * 3 * grad, rtol=1e-14, atol=1e-15)


def test_one_that_does_nothing_changes_nothing(layer: nn.Linear, draw: Callable[..., Tensor]) -> None:
    x, ends = draw(4, 3), []
    start = {name: value.clone() for name, value in layer.state_dict().items()}
    for transformed in (False, True):
        layer.load_state_dict(start)
        optimizer = torch.optim.Adam(layer.parameters())
        transform = Transform(layer, optimizer) if transformed else None
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        ends.append(layer.weight.detach().clone())
    assert torch.equal(*ends)
    assert transform is not None
    assert transform.state_dict() == {}
    transform.load_state_dict({})


def test_under_a_grad_scaler_gradients_are_unscaled_and_a_skipped_step_is_not_seen(
    layer: nn.Linear, draw: Callable[..., Tensor]
) -> None:
    layer, x = layer.float(), draw(4, 3, dtype=torch.float32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Watching(layer, optimizer) as transform:
        for factor in (torch.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(factor * layer(x).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [seen[0] for seen in transform.seen] == ["before", "after"]
    torch.testing.assert_close(transform.seen[0][2], x.sum(0).expand(2, 3))


def test_the_end_of_the_block_takes_the_hooks_off_also_after_an_error(
    layer: nn.Linear, count_hooks: Callable[..., int]
) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(KeyError), Watching(layer, optimizer) as transform:
        assert count_hooks(layer, optimizer) == 2
        raise KeyError
    assert count_hooks(layer, optimizer) == 0
    transform.remove()
    optimizer.step()
    assert transform.seen == []


def test_a_closure_is_refused(layer: nn.Linear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with Watching(layer, optimizer):
        for call in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
            with pytest.raises(ValueError, match=r"Watching needs optimizer\.step\(\) without a closure"):
                call()


def test_a_fused_optimizer_that_would_unscale_by_itself_is_refused(
    layer: nn.Linear, draw: Callable[..., Tensor]
) -> None:
    layer = layer.float()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Watching(layer, optimizer):
        scaler.scale(layer(draw(4, 3, dtype=torch.float32)).sum()).backward()
        with pytest.raises(ValueError, match=r"needs unscaled gradients; .* call scaler\.unscale_\(optimizer\)"):
            scaler.step(optimizer)


def test_a_fused_optimizer_sees_unscaled_gradients_and_a_step_that_it_skips_is_not_seen(
    layer: nn.Linear, draw: Callable[..., Tensor]
) -> None:
    layer, x = layer.float(), draw(4, 3, dtype=torch.float32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Watching(layer, optimizer, factor=2.0) as transform:
        for factor in (torch.inf, 1.0):
            optimizer.zero_grad()
            before = layer.weight.detach().clone()
            scaler.scale(factor * layer(x).sum()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert [seen[0] for seen in transform.seen] == ["before", "after"]
    torch.testing.assert_close(layer.weight.detach(), before - 0.2 * x.sum(0))


def test_an_optimizer_of_something_else_is_refused(layer: nn.Linear) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"Transform needs an optimizer of the model's parameters; it holds none"):
        Transform(layer, optimizer)


def test_a_state_for_one_that_keeps_none_is_refused(layer: nn.Linear) -> None:
    transform = Transform(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    state: dict[str, Any] = {"mean": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"Transform keeps no state; got \['mean'\]"):
        transform.load_state_dict(state)


def test_owned_parameters_are_those_of_any_group_and_tied_ones_come_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    groups = [{"params": [model[0].weight]}, {"params": [model[1].bias], "lr": 0.2}]
    optimizer = torch.optim.SGD([*groups, {"params": [nn.Parameter(torch.zeros(1))]}], lr=0.1)
    owned = owned_parameters(model, optimizer)
    assert list(owned) == ["0.weight", "1.bias"]
    assert owned["0.weight"] is model[0].weight
    assert owned_parameters(torch.compile(model, backend="eager"), optimizer).keys() == owned.keys()
