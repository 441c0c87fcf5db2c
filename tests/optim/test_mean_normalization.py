from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlens.optim import MeanNormalization
from support.resuming import draw_parameters

EPS = torch.finfo(torch.float64).eps


def grads(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.weight.grad.clone(), layer.bias.grad.clone()


def preconditioner(m: Tensor) -> Tensor:
    """P on the rows [W b]."""
    top = torch.cat([torch.eye(len(m), dtype=m.dtype), -m[:, None]], 1)
    return torch.cat([top, torch.cat([-m, (1 + m @ m)[None]])[None]])


def stepped(layer: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """The weight and bias after one transformed step of SGD with rate 0.1."""
    layer = deepcopy(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with MeanNormalization(layer, optimizer, **settings):
        loss(layer(x)).backward()
        optimizer.step()
    return layer.weight.detach(), layer.bias.detach()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (16, 5)),
        (nn.Linear(5, 3), (4, 6, 5)),
        (nn.Conv1d(4, 6, 3, groups=2), (8, 4, 7)),
        (nn.Conv2d(3, 4, (2, 3), stride=2, dilation=(1, 2)), (8, 3, 9, 9)),
        (nn.Conv3d(2, 2, 2, groups=2), (4, 2, 3, 4, 5)),
    ],
    ids=["linear", "sequence", "grouped conv1d", "conv2d", "depthwise conv3d"],
)
def test_a_step_is_that_of_a_layer_that_sees_centered_inputs(
    layer: nn.Module, shape: tuple[int, ...], draw: Callable[..., Tensor]
) -> None:
    layer, x = draw_parameters(layer), draw(*shape) + 2
    axes = tuple(range(x.dim() - 1)) if isinstance(layer, nn.Linear) else (0, *range(2, x.dim()))
    mean = x.mean(axes, keepdim=True)
    readout = draw(*layer(x).shape)
    weight, bias = stepped(layer, x, lambda out: (out.tanh() * readout).mean())

    centered = deepcopy(layer)
    zero_weight = torch.zeros_like(layer.weight)
    with torch.no_grad():
        offset = layer(mean.expand_as(x)) - layer.bias.view(-1, *(1,) * (layer.weight.dim() - 2))
        centered.bias.add_(offset.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)[:, 0])
    (centered(x - mean).tanh() * readout).mean().backward()
    with torch.no_grad():
        for parameter in centered.parameters():
            parameter.sub_(0.1 * parameter.grad)
        probe = draw(*shape)
        folded = centered(probe - mean)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        assert not torch.equal(weight, zero_weight)
        torch.testing.assert_close(layer(probe), folded, rtol=0, atol=1e-13)
    torch.testing.assert_close(weight, centered.weight.detach(), rtol=0, atol=1e-14)


def test_the_gradient_is_multiplied_by_a_positive_definite_matrix_of_determinant_one(
    draw: Callable[..., Tensor],
) -> None:
    layer, x = nn.Linear(5, 3).double(), draw(16, 5) + 3
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    layer(x).square().mean().backward()
    before = torch.cat([grads(layer)[0], grads(layer)[1][:, None]], 1)
    layer.zero_grad()
    with MeanNormalization(layer, optimizer):
        layer(x).square().mean().backward()
        optimizer.step()
    p = preconditioner(x.mean(0))
    assert abs(float(torch.linalg.det(p)) - 1) < 1e-12
    assert torch.linalg.eigvalsh(p).min() > 0
    after = torch.cat([grads(layer)[0], grads(layer)[1][:, None]], 1)
    torch.testing.assert_close(after, before @ p, rtol=1e-13, atol=64 * EPS * float(before.abs().max() * p.abs().max()))


def test_inputs_of_mean_zero_leave_the_plain_step(draw: Callable[..., Tensor]) -> None:
    layer, half = nn.Linear(5, 3).double(), draw(8, 5)
    x = torch.stack([half, -half], 1).flatten(0, 1)  # sums to zero pair by pair
    assert torch.equal(x.mean(0), torch.zeros(5, dtype=torch.float64))
    weight, bias = stepped(layer, x, lambda out: out.exp().mean())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).exp().mean().backward()
    optimizer.step()
    assert torch.equal(weight, layer.weight)
    assert torch.equal(bias, layer.bias)


def test_an_old_mean_still_gives_a_descent_direction(draw: Callable[..., Tensor]) -> None:
    layer = nn.Linear(5, 3).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with MeanNormalization(layer, optimizer, momentum=0.01):
        layer(draw(16, 5) + 5).square().mean().backward()
        optimizer.step()
        x = draw(16, 5) - 5
        layer.zero_grad()
        layer(x).square().mean().backward()
        before = torch.cat([g.flatten() for g in grads(layer)])
        optimizer.step()
    after = torch.cat([g.flatten() for g in grads(layer)])
    assert before @ after > 0
    assert not torch.allclose(before, after)


def test_the_mean_begins_with_the_first_batch_and_moves_by_the_momentum(draw: Callable[..., Tensor]) -> None:
    layer = nn.Linear(5, 3).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    seen = [draw(16, 5) + k for k in range(3)]
    with MeanNormalization(layer, optimizer, momentum=0.25) as transform:
        for x in seen:
            layer(x).sum().backward()
            optimizer.step()
    a, b, c = (x.mean(0) for x in seen)
    expected = 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c
    torch.testing.assert_close(transform.state_dict()[""]["mean"][0], expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_resumed_training_continues_bit_by_bit(
    kind: Any, cnn: Callable[..., nn.Sequential], resumed_equals_uninterrupted: Callable[..., None]
) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, MeanNormalization]:
        model = cnn(torch.float32).double()
        settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(model.parameters(), lr=1e-2, **settings)
        return model, optimizer, MeanNormalization(model, optimizer)

    resumed_equals_uninterrupted(build)


def test_two_half_batches_make_the_step_of_the_whole_one(
    cnn: Callable[..., nn.Sequential], batches: list[Any], run_training: Callable[..., None]
) -> None:
    found = []
    for parts in (1, 2):
        model = cnn()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with MeanNormalization(model, optimizer):
            run_training(model, optimizer, batches, parts)
        found.append(list(model.parameters()))
    for whole, halves in zip(*found, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-11, atol=1e-12)


def test_the_end_of_the_block_takes_every_hook_off(
    cnn: Callable[..., nn.Sequential], count_hooks: Callable[..., int]
) -> None:
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with MeanNormalization(model, optimizer):
        assert count_hooks(model, optimizer) == 2 * 3 + 2
    assert count_hooks(model, optimizer) == 0


@pytest.mark.parametrize("momentum", [0.0, 1.5])
def test_a_momentum_out_of_range_is_refused(momentum: float) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\]"):
        MeanNormalization(layer, torch.optim.SGD(layer.parameters(), lr=0.1), momentum=momentum)


def test_a_layer_without_a_bias_is_refused_by_name_and_nothing_stays_on_the_optimizer(
    count_hooks: Callable[..., int],
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"MeanNormalization needs a bias.*'1'"):
        MeanNormalization(model, optimizer)
    assert count_hooks(model, optimizer) == 0
