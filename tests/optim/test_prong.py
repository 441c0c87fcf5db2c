from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlens.optim import PRONG
from support.resuming import draw_parameters

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "decay": lambda parameters: torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}
EPS = 1e-3


def whitening_of(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """U and c of samples (n, m), from the singular values of the centered ones, not from a covariance."""
    centered = x - x.mean(0)
    _, values, rows = torch.linalg.svd(centered, full_matrices=False)
    pca = rows / (values.square() / len(x) + EPS).sqrt()[:, None]
    return (rows.T @ pca if kind == "zca" else pca), x.mean(0)


class Whitened(nn.Module):
    """V U (x - c) + d with the parameters V and d."""

    def __init__(self, layer: nn.Linear, whitening: Tensor, center: Tensor) -> None:
        super().__init__()
        self.whitening, self.center = whitening, center
        self.weight = nn.Parameter(layer.weight.detach() @ torch.linalg.inv(whitening))
        self.bias = nn.Parameter(layer.bias.detach() + layer.weight.detach() @ center)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) @ self.whitening.T @ self.weight.T + self.bias


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        (model(x).tanh() - y).square().mean().backward()
        optimizer.step()


@pytest.fixture
def data(draw: Callable[..., Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Twelve batches of 32 correlated samples with means of one."""
    mixing = draw(5, 5)
    return [(draw(32, 5) @ mixing + 1, draw(32, 3)) for _ in range(12)]


@pytest.mark.parametrize("kind", ["pca", "zca"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_training_is_that_of_a_layer_with_the_parameters_v_and_d(
    name: str, kind: Any, data: list[tuple[Tensor, Tensor]]
) -> None:
    layer = nn.Linear(5, 3).double()
    whitened = Whitened(layer, *whitening_of(data[0][0], kind))
    train(whitened, OPTIMIZERS[name](whitened.parameters()), data)
    optimizer = OPTIMIZERS[name](layer.parameters())
    with PRONG(layer, optimizer, num_samples=32, whitening=kind):
        train(layer, optimizer, data)
    weight = whitened.weight @ whitened.whitening
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-11)
    torch.testing.assert_close(layer.bias, whitened.bias - weight @ whitened.center, rtol=0, atol=1e-11)


def test_adams_path_depends_on_the_basis_and_that_of_sgd_does_not(data: list[tuple[Tensor, Tensor]]) -> None:
    start, ends = nn.Linear(5, 3).double(), {}
    for name in ("sgd", "adamw"):
        for kind in ("pca", "zca"):
            layer = deepcopy(start)
            optimizer = OPTIMIZERS[name](layer.parameters())
            with PRONG(layer, optimizer, num_samples=32, whitening=kind):  # type: ignore[arg-type]
                train(layer, optimizer, data)
            ends[name, kind] = layer.weight.detach()
    torch.testing.assert_close(ends["sgd", "pca"], ends["sgd", "zca"], rtol=0, atol=1e-12)
    assert (ends["adamw", "pca"] - ends["adamw", "zca"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 3), (40, 5)), (nn.Linear(5, 3), (8, 5, 5)), (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 4, 5, 6))],
    ids=["linear", "sequence", "grouped conv"],
)
def test_a_step_of_sgd_is_the_preconditioned_canonical_one(
    layer: nn.Module, shape: tuple[int, ...], draw: Callable[..., Tensor]
) -> None:
    """dW = -eta (G_W - G_b c')(Sigma + eps)^-1 and db = -eta G_b - dW c, of each group."""
    layer, x = draw_parameters(layer), draw(*shape) + 1
    before = deepcopy(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with PRONG(layer, optimizer, num_samples=1):
        layer(x).tanh().mean().backward()
        g_weight, g_bias = layer.weight.grad.clone(), layer.bias.grad.clone()
        optimizer.step()
    groups = getattr(layer, "groups", 1)
    channels = x.flatten(0, -2).T if isinstance(layer, nn.Linear) else x.transpose(0, 1).flatten(1)
    parts = zip(*(t.chunk(groups) for t in (channels, g_weight, g_bias, before.weight, before.bias)), strict=True)
    weights, biases = [], []
    for rows, gw, gb, w, b in parts:
        c, covariance = rows.mean(1), torch.cov(rows, correction=0)
        inverse = torch.linalg.inv(covariance + EPS * torch.eye(len(rows), dtype=torch.float64))
        flat = gw.flatten(2) if gw.dim() > 2 else gw[:, :, None]
        step = -0.1 * torch.einsum("ock,cd->odk", flat - gb[:, None, None] * c[:, None], inverse)
        weights.append(w + step.view_as(w))
        biases.append(b - 0.1 * gb - torch.einsum("ock,c->o", step, c))
    torch.testing.assert_close(layer.weight, torch.cat(weights), rtol=0, atol=1e-13)
    torch.testing.assert_close(layer.bias, torch.cat(biases), rtol=0, atol=1e-13)


@pytest.mark.parametrize("state", ["reset", "transform"])
def test_the_function_is_preserved_at_every_new_basis(
    state: Any, cnn: Callable[..., nn.Sequential], batches: list[tuple[Tensor, Tensor]]
) -> None:
    """With a rate of zero a step is a round trip through V and d, and every second one takes a new basis."""
    model, x = cnn(), batches[0][0]
    before, weights = model(x), deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    with PRONG(model, optimizer, interval=2, num_samples=8, optimizer_state=state) as transform:
        bases = []
        for inputs, targets in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            bases.append(transform.state_dict()["bases"]["0"]["whitening"])
            assert (model(x) - before).abs().max() < 1e-12
    assert [torch.equal(a, b) for a, b in pairwise(bases)] == 4 * [True, False] + [True]
    assert list(model.state_dict()) == list(weights)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_an_estimate_is_of_as_many_steps_as_it_takes_to_see_the_samples(data: list[tuple[Tensor, Tensor]]) -> None:
    layer = nn.Linear(5, 3).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    found = []
    with PRONG(layer, optimizer, interval=6, num_samples=65) as transform:
        for batch in data:
            train(layer, optimizer, [batch])
            bases = transform.state_dict()["bases"]
            found.append(bases[""]["center"][0] if bases else None)
    assert found[:2] == [None, None]  # 64 samples are not enough
    of_first, of_second = (torch.cat([x for x, _ in part]).mean(0) for part in (data[:3], data[8:11]))
    for center in found[2:10]:
        torch.testing.assert_close(center, of_first, rtol=0, atol=1e-14)
    for center in found[10:]:  # due at the ninth batch, six steps after the third, and gathered from three
        torch.testing.assert_close(center, of_second, rtol=0, atol=1e-14)


def test_momentum_is_forgotten_or_goes_on_as_the_same_velocity(data: list[tuple[Tensor, Tensor]]) -> None:
    """In the step of a new basis the gradient is zero: W and b move by mu times their last move, or not at all."""
    start = nn.Linear(5, 3).double()
    for state, factor in (("transform", 0.9), ("reset", 0.0)):
        layer = deepcopy(start)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
        with PRONG(layer, optimizer, interval=3, num_samples=32, optimizer_state=state) as transform:  # type: ignore[arg-type]
            train(layer, optimizer, data[:2])
            at = [p.detach().clone() for p in layer.parameters()]
            train(layer, optimizer, data[2:3])
            moved = [p.detach() - old for p, old in zip(layer.parameters(), at, strict=True)]
            at, old_basis = [p.detach().clone() for p in layer.parameters()], transform.state_dict()["bases"][""]
            optimizer.zero_grad()
            (0 * layer(data[3][0]).sum()).backward()
            optimizer.step()
            assert not torch.equal(old_basis["whitening"], transform.state_dict()["bases"][""]["whitening"])
        for parameter, before, move in zip(layer.parameters(), at, moved, strict=True):
            assert move.abs().max() > 1e-3
            torch.testing.assert_close(parameter.detach() - before, factor * move, rtol=0, atol=1e-13)


def test_adams_state_begins_anew_with_a_new_basis(data: list[tuple[Tensor, Tensor]]) -> None:
    layer = nn.Linear(5, 3).double()
    optimizer = torch.optim.Adam(layer.parameters())
    with PRONG(layer, optimizer, interval=4, num_samples=32):
        train(layer, optimizer, data[:6])
    assert [int(optimizer.state[p]["step"]) for p in layer.parameters()] == [2, 2]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("at", [4, 5])
def test_a_resumed_training_continues_bit_by_bit(
    name: str, at: int, cnn: Callable[..., nn.Sequential], resumed_equals_uninterrupted: Callable[..., None]
) -> None:
    """After four steps the samples for the next basis are half gathered, after five it is new."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer, PRONG]:
        model = cnn(torch.float64)
        optimizer = OPTIMIZERS[name](model.parameters())
        return model, optimizer, PRONG(model, optimizer, interval=2, num_samples=16, eps=0.1)

    resumed_equals_uninterrupted(build, at=at)


def test_two_half_batches_make_the_step_of_the_whole_one(
    cnn: Callable[..., nn.Sequential], batches: list[Any], run_training: Callable[..., None]
) -> None:
    found = []
    for parts in (1, 2):
        model = cnn()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with PRONG(model, optimizer, interval=3, num_samples=8):
            run_training(model, optimizer, batches, parts)
        found.append(list(model.parameters()))
    for whole, halves in zip(*found, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-10, atol=1e-11)


def test_layers_without_a_bias_are_whitened_without_a_center(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(5, 3, bias=False).double(), draw(40, 5) + 1
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    with PRONG(layer, optimizer, num_samples=1, centering=False):
        layer(x).tanh().mean().backward()
        grad = layer.weight.grad.clone()
        optimizer.step()
    inverse = torch.linalg.inv(torch.cov(x.T, correction=0) + EPS * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(layer.weight.detach(), before - 0.1 * grad @ inverse, rtol=0, atol=1e-13)


class _Failing(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("by", ["remove", "next step"])
def test_after_an_optimizer_that_failed_the_weights_are_put_back(by: str, data: list[tuple[Tensor, Tensor]]) -> None:
    layer = nn.Linear(5, 3).double()
    before = layer.weight.detach().clone()
    optimizer = _Failing(layer.parameters(), lr=0.1)
    transform = PRONG(layer, optimizer, num_samples=32)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(layer, optimizer, data[:1])
    assert not torch.equal(layer.weight, before)
    if by == "remove":
        transform.remove()
    else:
        with pytest.raises(RuntimeError, match="PRONG needs gradients at the weights; got those at V"):
            optimizer.step()
    assert torch.equal(layer.weight, before)


def test_the_end_of_the_block_takes_every_hook_off(
    cnn: Callable[..., nn.Sequential], count_hooks: Callable[..., int]
) -> None:
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with PRONG(model, optimizer):
        assert count_hooks(model, optimizer) == 2 * 3 + 2
    assert count_hooks(model, optimizer) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval and num_samples must be at least 1; got 0 and 1024"),
        ({"num_samples": 0}, "interval and num_samples must be at least 1; got 1000 and 0"),
        ({"eps": -1.0}, r"eps must not be negative; got -1\.0"),
        ({"whitening": "cholesky"}, "whitening must be .pca. or .zca.; got 'cholesky'"),
        ({"optimizer_state": "keep"}, "optimizer_state must be .reset. or .transform.; got 'keep'"),
        ({"optimizer_state": "transform"}, r"momentum of torch\.optim\.SGD alone; got Adam"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        PRONG(layer, torch.optim.Adam(layer.parameters()), **settings)


def test_a_layer_without_a_bias_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1, bias=False))
    with pytest.raises(ValueError, match=r"PRONG needs a bias.*'1'.*centering=False"):
        PRONG(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_the_state_of_another_model_is_refused(data: list[tuple[Tensor, Tensor]]) -> None:
    layer, other = nn.Linear(5, 3).double(), nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with PRONG(layer, optimizer, num_samples=1) as transform:
        train(layer, optimizer, data[:1])
    target = PRONG(other, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"PRONG needs a state of \(1, 4\) .* got \(1, 5\)"):
        target.load_state_dict(transform.state_dict())


def test_inputs_that_are_not_finite_make_no_basis(draw: Callable[..., Tensor]) -> None:
    layer = nn.Linear(2, 2).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with PRONG(layer, optimizer, num_samples=1):
        layer(draw(4, 2) + torch.nan).sum().backward()
        with pytest.raises(ValueError, match="PRONG needs finite inputs for a new basis; got others at layer ''"):
            optimizer.step()
