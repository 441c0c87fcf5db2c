from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlens.optim import BNP
from support.resuming import draw_parameters

EPS = torch.finfo(torch.float64).eps
EXACT: dict[str, Any] = {"statistics": "batch", "q": 1.0, "eps1": 0.0, "eps2": 0.0}
H = torch.tensor([[1.0, 2], [3, 2], [1, 6], [3, 6]], dtype=torch.float64)


def preconditioned(layer: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], **settings: Any) -> list[Tensor]:
    """The gradients of weight and bias that the optimizer sees after one pass."""
    layer = deepcopy(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with BNP(layer, optimizer, **settings):
        loss(layer(x)).backward()
        optimizer.step()
    return [parameter.grad for parameter in layer.parameters()]


def plain(layer: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss(layer(x)), list(layer.parameters())))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (16, 5)),
        (nn.Linear(5, 3), (4, 6, 5)),
        (nn.Conv1d(4, 6, 3, groups=2), (8, 4, 7)),
        (nn.Conv2d(3, 4, (2, 3), stride=2, dilation=(1, 2)), (8, 3, 9, 9)),
        (nn.Conv3d(2, 4, 2, groups=2), (4, 2, 3, 4, 5)),
    ],
    ids=["linear", "sequence", "grouped conv1d", "conv2d", "depthwise conv3d"],
)
def test_a_step_is_that_of_a_network_with_frozen_batch_norm_before_the_layer(
    layer: nn.Module, shape: tuple[int, ...], draw: Callable[..., Tensor]
) -> None:
    layer, x = draw_parameters(layer), 2 * draw(*shape) + 1
    linear = isinstance(layer, nn.Linear)
    axes = tuple(range(x.dim() - 1)) if linear else (0, *range(2, x.dim()))
    mean, std = x.mean(axes, keepdim=True), x.std(axes, correction=0, keepdim=True)
    readout = draw(*layer(x).shape)

    # W~ = W diag(sigma) and b~ = b + W mu, read off the layer itself: its answers to scaled inputs and to the mean.
    normalized = deepcopy(layer)
    with torch.no_grad():
        of_inputs = std.flatten().view(getattr(layer, "groups", 1), -1)
        repeated = of_inputs.repeat_interleave(layer.weight.shape[0] // len(of_inputs), 0)
        normalized.weight.mul_(repeated.view(*repeated.shape, *(1,) * (layer.weight.dim() - 2)))
        at_mean = layer(mean.expand_as(x))
        normalized.bias.copy_(at_mean.movedim(-1 if linear else 1, 0).flatten(1)[:, 0])
        torch.testing.assert_close(normalized((x - mean) / std), layer(x), rtol=0, atol=1e-13)
    optimizer = torch.optim.SGD(normalized.parameters(), lr=0.1)
    (normalized((x - mean) / std).tanh() * readout).mean().backward()
    optimizer.step()

    trained = deepcopy(layer)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    with BNP(trained, optimizer, **EXACT):
        (trained(x).tanh() * readout).mean().backward()
        optimizer.step()
    probe = draw(*shape)
    assert (trained(probe) - layer(probe)).abs().max() > 1e-3
    torch.testing.assert_close(trained(probe), normalized((probe - mean) / std), rtol=0, atol=1e-13)


def test_the_gradient_is_multiplied_by_the_explicit_p_p_transposed(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(5, 3).double(), draw(16, 5) * torch.arange(1, 6) + 1

    def loss(out: Tensor) -> Tensor:
        return out.tanh().mean()

    weight, bias = plain(layer, x, loss)
    mean, std = x.mean(0), x.std(0, correction=0)
    u = torch.eye(6, dtype=torch.float64)
    u[0, 1:] = -mean
    p = u @ torch.diag(torch.cat([torch.ones(1, dtype=torch.float64), 1 / std]))
    expected = torch.cat([bias[:, None], weight], 1) @ (p @ p.T)
    found = preconditioned(layer, x, loss, **EXACT)
    torch.testing.assert_close(torch.cat([found[1][:, None], found[0]], 1), expected, rtol=0, atol=1e-15)


def test_the_four_samples_of_the_theory_are_normalized_to_condition_one() -> None:
    """T1: kappa([e, H]) = 15.2592..., and 1 once normalized: one step of rate 1 solves the least-squares problem."""
    layer = nn.Linear(2, 1).double()
    target = H @ torch.tensor([0.3, -0.7], dtype=torch.float64) + 1.1
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with BNP(layer, optimizer, **EXACT) as transform:
        (0.5 * (layer(H)[:, 0] - target).square().mean()).backward()
        optimizer.step()
    assert torch.equal(transform.state_dict()[""]["mean"], torch.tensor([[2.0, 4.0]], dtype=torch.float64))
    assert torch.equal(transform.state_dict()[""]["spread"], torch.tensor([[1.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(layer(H)[:, 0], target, rtol=0, atol=1e-13)


def test_the_scalar_of_the_theory() -> None:
    """T2: G_W = 3, G_b = 1, mu = 2, sigma^2 = 4 give 0.25 and 0.5: the bias takes the new weight gradient."""
    layer = nn.Linear(1, 1).double()
    x = torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    shares = torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    weight, bias = preconditioned(layer, x, lambda out: (out * shares).sum(), **EXACT)
    assert (float(weight), float(bias)) == (0.25, 0.5)


def test_standardized_inputs_leave_the_gradients_bitwise(draw: Callable[..., Tensor]) -> None:
    """T5: mu = 0, sigma = 1."""
    layer, half = nn.Linear(5, 3).double(), draw(8, 5).sign()
    x = torch.cat([half, -half])

    def loss(out: Tensor) -> Tensor:
        return out.exp().mean()

    for found, expected in zip(preconditioned(layer, x, loss, **EXACT), plain(layer, x, loss), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("layer", "shape", "squared"),
    [
        (nn.Linear(12, 2), (4, 12), 3.0),
        (nn.Linear(12, 2), (24, 12), 1.0),
        (nn.Conv2d(4, 2, 3, groups=2), (2, 4, 4, 3), 4.5),
    ],
    ids=["wide", "many samples", "conv"],
)
def test_q_squared_is_the_fan_in_over_the_number_of_outputs_and_at_least_one(
    layer: nn.Module, shape: tuple[int, ...], squared: float, draw: Callable[..., Tensor]
) -> None:
    layer, x = draw_parameters(layer), draw(*shape)

    def loss(out: Tensor) -> Tensor:
        return out.tanh().mean()

    by_paper = preconditioned(layer, x, loss, q="paper", statistics="batch")
    without = preconditioned(layer, x, loss, q=1.0, statistics="batch")
    told = preconditioned(layer, x, loss, q=squared**0.5, statistics="batch")
    for a, b, c in zip(by_paper, without, told, strict=True):
        torch.testing.assert_close(a * squared, b, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-14)


def test_the_floors_are_of_the_largest_variance_and_absolute(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(3, 2).double(), draw(16, 3) * torch.tensor([1.0, 3.0, 0.0])

    def loss(out: Tensor) -> Tensor:
        return out.tanh().mean()

    floors = {"statistics": "batch", "q": 1.0, "eps1": 0.1, "eps2": 0.01}
    weight, bias = preconditioned(layer, x, loss, **floors)
    variance, mean = x.var(0, correction=0), x.mean(0)
    g_weight, g_bias = plain(layer, x, loss)
    expected = (g_weight - g_bias[:, None] * mean) / (variance + 0.1 * variance.max() + 0.01)
    torch.testing.assert_close(weight, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(bias, g_bias - expected @ mean, rtol=1e-13, atol=1e-15)


def run_batches(layer: nn.Module, seen: list[Tensor], **settings: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with BNP(layer, optimizer, **settings) as transform:
        for x in seen:
            layer(x).sum().backward()
            optimizer.step()
    return transform.state_dict()[""]


def test_running_moments_are_those_of_the_exponentially_weighted_inputs(draw: Callable[..., Tensor]) -> None:
    """With two points -1 and 1 standing for what was before: mean 0, variance 1."""
    seen = [draw(8, 2) * 2 + k for k in range(3)]
    state = run_batches(nn.Linear(2, 1).double(), seen, rho=0.8)
    before = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    shares = [0.8**3, 0.2 * 0.64, 0.2 * 0.8, 0.2]
    weights = torch.cat([torch.full((len(x),), s / len(x)) for x, s in zip([before, *seen], shares, strict=True)])
    points = torch.cat([before, *seen])
    mean = weights.double() @ points
    torch.testing.assert_close(state["mean"][0], mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(state["spread"][0], weights.double() @ (points - mean).square(), rtol=1e-6, atol=1e-7)


def test_without_the_variance_between_batches_it_is_the_average_of_the_variances(draw: Callable[..., Tensor]) -> None:
    seen = [draw(8, 2) * 2 + k for k in range(2)]
    state = run_batches(nn.Linear(2, 1).double(), seen, rho=0.8, between_batches=False)
    a, b = (x.var(0, correction=0) for x in seen)
    torch.testing.assert_close(state["spread"][0], 0.64 + 0.16 * a + 0.2 * b, rtol=1e-13, atol=0)


def test_bias_correction_forgets_what_was_before_the_first_batch(draw: Callable[..., Tensor]) -> None:
    seen = [draw(8, 2) * 2 + 5 for _ in range(3)]
    state = run_batches(nn.Linear(2, 1).double(), seen, rho=0.8, bias_correction=True)
    shares = torch.tensor([0.64, 0.8, 1.0], dtype=torch.float64) * 0.2 / (1 - 0.8**3)
    weights = (shares / 8).repeat_interleave(8)
    mean = weights @ torch.cat(seen)
    torch.testing.assert_close(state["mean"][0], mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(state["spread"][0], weights @ (torch.cat(seen) - mean).square(), rtol=1e-12, atol=0)


def test_batches_of_one_sample_have_the_variance_of_the_stream(draw: Callable[..., Tensor]) -> None:
    """Online: a single sample has no variance of its own; the average of the variances decays to zero."""
    stream = list((draw(3000, 1, 2) * torch.tensor([3.0, 0.5]) + 7).unbind())
    state = run_batches(nn.Linear(2, 1).double(), stream, rho=0.99)
    expected = torch.tensor([9.0, 0.25], dtype=torch.float64)
    # weights (1 - rho) rho^k are worth 199 equal samples: a variance has the standard error sqrt(2 / 199) = 0.1
    torch.testing.assert_close(state["spread"][0], expected, rtol=0.4, atol=0)
    decayed = run_batches(nn.Linear(2, 1).double(), stream, rho=0.99, between_batches=False)
    assert decayed["spread"].max() < 1e-12


def test_online_steps_solve_a_badly_conditioned_problem_where_plain_ones_of_any_rate_do_not(
    draw: Callable[..., Tensor],
) -> None:
    """Inputs of mean 10: plain SGD must keep its rate under 2 / 100 and hardly moves along the small directions."""
    x = draw(400, 1, 3) * torch.tensor([1.0, 0.1, 1.0]) + 10
    coefficients = torch.tensor([[1.0, 10.0, -1.0]], dtype=torch.float64)

    def loss_after(rate: float, transformed: bool) -> float:
        layer = nn.Linear(3, 1).double()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
        transform = BNP(layer, optimizer, rho=0.95, q=1.0, bias_correction=True, eps1=1e-3) if transformed else None
        for sample in x:
            optimizer.zero_grad()
            (layer(sample) - (sample - 10) @ coefficients.T).square().mean().backward()
            optimizer.step()
        if transform:
            transform.remove()
        return float((layer(x) - (x - 10) @ coefficients.T).detach().square().mean())

    best_plain = min(loss_after(10.0**-k, False) for k in (2.5, 3, 3.5, 4, 5))
    assert loss_after(0.05, True) < 0.1 * best_plain


def test_without_centering_layers_need_no_bias_and_are_scaled_alone(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(3, 2, bias=False).double(), draw(16, 3) + 1

    def loss(out: Tensor) -> Tensor:
        return out.tanh().mean()

    (found,) = preconditioned(layer, x, loss, **EXACT, centering=False)
    (expected,) = plain(layer, x, loss)
    torch.testing.assert_close(found, expected / x.var(0, correction=0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_resumed_training_continues_bit_by_bit(
    kind: Any, cnn: Callable[..., nn.Sequential], resumed_equals_uninterrupted: Callable[..., None]
) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, BNP]:
        model = cnn()
        optimizer = kind(model.parameters(), lr=1e-2)
        return model, optimizer, BNP(model, optimizer, bias_correction=True)

    resumed_equals_uninterrupted(build)


def test_two_half_batches_make_the_step_of_the_whole_one(
    cnn: Callable[..., nn.Sequential], batches: list[Any], run_training: Callable[..., None]
) -> None:
    found = []
    for parts in (1, 2):
        model = cnn()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with BNP(model, optimizer):
            run_training(model, optimizer, batches, parts)
        found.append(list(model.parameters()))
    for whole, halves in zip(*found, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-11, atol=1e-12)


def test_weight_decay_is_added_after_the_preconditioner(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(3, 2).double(), draw(16, 3) + 1
    found = preconditioned(layer, x, lambda out: out.tanh().mean(), **EXACT)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5)
    expected = [p.detach() - 0.1 * (g + 0.5 * p.detach()) for p, g in zip(layer.parameters(), found, strict=True)]
    with BNP(layer, optimizer, **EXACT):
        layer(x).tanh().mean().backward()
        optimizer.step()
    for a, b in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-14, atol=1e-15)


def test_half_precision_weights_are_preconditioned_in_float32(draw: Callable[..., Tensor]) -> None:
    layer, x = nn.Linear(5, 3).to(torch.bfloat16), (draw(16, 5) + 2).to(torch.bfloat16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with BNP(layer, optimizer, **EXACT) as transform:
        layer(x).sum().backward()
        raw = [parameter.grad.double() for parameter in layer.parameters()]
        optimizer.step()
    state = transform.state_dict()[""]
    assert state["spread"].dtype == torch.float32
    mean, variance = x.double().mean(0), x.double().var(0, correction=0)
    expected = (raw[0] - raw[1][:, None] * mean) / variance
    torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad.double(), raw[1] - expected @ mean, rtol=2**-8, atol=1e-3)


def test_the_end_of_the_block_takes_every_hook_off(
    cnn: Callable[..., nn.Sequential], count_hooks: Callable[..., int]
) -> None:
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with BNP(model, optimizer):
        assert count_hooks(model, optimizer) == 2 * 3 + 2
    assert count_hooks(model, optimizer) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 1.0}, r"rho must be in \[0, 1\); got 1.0"),
        ({"eps1": -1.0}, "eps1 and eps2 must not be negative"),
        ({"q": 0.0}, 'q must be "paper" or a positive number; got 0.0'),
        ({"q": "none"}, "q must be .paper. or a positive number; got 'none'"),
        ({"statistics": "total"}, "statistics must be .running. or .batch.; got 'total'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        BNP(layer, torch.optim.SGD(layer.parameters(), lr=0.1), **settings)


def test_a_layer_without_a_bias_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1, bias=False))
    with pytest.raises(ValueError, match=r"BNP needs a bias.*'1'.*centering=False"):
        BNP(model, torch.optim.SGD(model.parameters(), lr=0.1))
