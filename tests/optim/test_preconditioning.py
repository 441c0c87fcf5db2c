from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlens.optim.input_statistics import InputMoments, means
from normlens.optim.preconditioning import InputPreconditioner
from normlens.optim.weight_layers import WeightLayer


class Doubling(InputPreconditioner):
    """The newest batch alone counts, and gradients are doubled."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> None:
        super().__init__(model, optimizer, means, **settings)
        self.calls: list[tuple[InputMoments, int]] = []

    def blend(self, running: InputMoments | None, batch: InputMoments, updates: int) -> InputMoments:
        self.calls.append((batch, updates))
        return batch

    def precondition(self, layer: WeightLayer, moments: InputMoments) -> None:
        layer.weight.grad.mul_(2)


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(3, 2).double()


def test_a_batch_is_blended_once_per_step_and_counted(layer: nn.Linear, draw: Callable[..., Tensor]) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    x = draw(4, 3)
    with Doubling(layer, optimizer) as transform:
        for part in x.split(2):
            layer(part).sum().backward()
        optimizer.step()
        layer(x + 1).sum().backward()
        optimizer.step()
    assert [updates for _, updates in transform.calls] == [1, 2]
    torch.testing.assert_close(transform.calls[0][0].mean[0], x.mean(0), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(transform.state_dict()[""]["mean"][0], x.mean(0) + 1, rtol=1e-14, atol=1e-15)
    assert transform.state_dict()[""]["updates"] == 2


def test_gradients_under_amp_are_unscaled_and_a_skipped_step_counts_for_nothing(
    layer: nn.Linear, draw: Callable[..., Tensor]
) -> None:
    layer, x = layer.float(), draw(4, 3, dtype=torch.float32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
    with Doubling(layer, optimizer) as transform:
        for inputs in (x + torch.inf, x):
            optimizer.zero_grad()
            scaler.scale(layer(inputs).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [updates for _, updates in transform.calls] == [1]
    torch.testing.assert_close(layer.weight.grad, 2 * x.sum(0).expand(2, 3))
    torch.testing.assert_close(transform.state_dict()[""]["mean"][0], x.mean(0))


def test_layers_of_another_optimizer_are_left_alone(draw: Callable[..., Tensor]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    ours, theirs = (torch.optim.SGD(part.parameters(), lr=0.0) for part in model)
    with Doubling(model, ours):
        model(draw(4, 3)).sum().backward()
        before = [part.weight.grad.clone() for part in model]
        ours.step()
        theirs.step()
    assert torch.equal(model[0].weight.grad, 2 * before[0])
    assert torch.equal(model[1].weight.grad, before[1])


def test_a_frozen_layer_is_left_alone(draw: Callable[..., Tensor]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Doubling(model, optimizer) as transform:
        model[0].requires_grad_(False)
        model(draw(4, 3)).sum().backward()
        optimizer.step()
    assert set(transform.state_dict()) == {"1"}


def test_a_gradient_without_a_pass_in_train_mode_is_refused(layer: nn.Linear, draw: Callable[..., Tensor]) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    layer.eval()
    with Doubling(layer, optimizer):
        layer(draw(4, 3)).sum().backward()
        with pytest.raises(ValueError, match=r"Doubling needs a forward pass in train mode .* got none through ''"):
            optimizer.step()


def test_tied_weights_are_refused_and_leave_no_hook(count_hooks: Callable[..., int]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"Doubling needs every weight to belong to one layer; got one .* 0 and 1"):
        Doubling(model, optimizer)
    assert count_hooks(model, optimizer) == 0


def test_the_state_of_another_model_is_refused(layer: nn.Linear, draw: Callable[..., Tensor]) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with Doubling(layer, optimizer) as transform:
        layer(draw(4, 3)).sum().backward()
        optimizer.step()
    model = nn.Sequential(nn.Linear(3, 2))
    other = Doubling(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"Doubling needs a state of its own layers; got layer ''; it has \['0'\]"):
        other.load_state_dict(transform.state_dict())
