from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import Tensor, nn

from normlens.models.resnet import ResNet
from normlens.nn import BatchNorm
from normlens.optim import EquiNormalization, Stream, equi_normalize, find_streams
from support.resuming import (
    OPTIMIZERS,
    after_resuming,
    assert_same_bits,
    draw_parameters,
    make_generator,
    without_a_break,
)

EPS = torch.finfo(torch.float64).eps


def relu_net(*widths: int, bias: bool = True, seed: int = 0) -> nn.Sequential:
    steps: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        steps += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return draw_parameters(nn.Sequential(*steps[:-1]), seed)


def conv_net(norm=lambda c: nn.Identity(), seed: int = 0) -> nn.Sequential:
    steps = [nn.Conv2d(2, 4, 3, padding=1), norm(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), norm(3)]
    return draw_parameters(nn.Sequential(*steps, nn.LeakyReLU(), nn.Flatten(), nn.Linear(12, 5)), seed)


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=make_generator(7), dtype=torch.float64)


def energy(model: nn.Module) -> float:
    return sum(
        float(p.detach().square().sum()) for n, p in model.named_parameters() if n.endswith("weight") and p.dim() > 1
    )


def two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 2.0]]))
    return model


def unbalanced(model: nn.Module, seed: int) -> nn.Module:
    """Rescale the channels of a chain at random: the same function with other weights."""
    generator = make_generator(seed)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for left, right in itertools.pairwise(layers):
            d = torch.exp(torch.randn(len(left.weight), generator=generator, dtype=torch.float64))
            left.weight *= d[:, None]
            right.weight /= d
            if left.bias is not None:
                left.bias *= d
    return model


def test_two_layers_are_at_the_optimum_after_one_sweep():
    """T2: row norms (5, 1), column norms (1, 2 sqrt 2), so the optimum is 2 sum a_i b_i."""
    model = two_layers()
    assert energy(model) == 35.0
    equi_normalize(model)
    d = torch.tensor([0.2**0.5, 8**0.25], dtype=torch.float64)
    torch.testing.assert_close(d, torch.tensor([0.4472136, 1.6817928], dtype=torch.float64), rtol=1e-7, atol=0)
    expected = d[:, None] * torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=4 * EPS, atol=0)
    assert energy(model) == pytest.approx(2 * (5 * 1 + 1 * 8**0.5), rel=8 * EPS)
    assert energy(model) == pytest.approx(15.656854, abs=5e-7)


@pytest.mark.parametrize("build", [lambda: relu_net(5, 7, 6, 4, 3), conv_net], ids=["linear", "conv"])
@pytest.mark.parametrize("settings", [{}, {"p": 1.0}, {"c": 1.3}, {"bias": True}], ids=str)
def test_the_function_stays(build, settings):
    """T1, also with other norms, an asymmetry and biases in the norm: any positive factors do."""
    model = build()
    x = images() if isinstance(model[0], nn.Conv2d) else torch.randn(9, 5, generator=make_generator(1)).double()
    before, weight = model(x), model[0].weight.detach().clone()
    equi_normalize(model, sweeps=3, **settings)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model[0].weight, weight, rtol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_the_function_stays_through_batch_norms_without_epsilon(training: bool):
    model = conv_net(lambda c: BatchNorm(c, eps=0.0))
    model(3.0 * images() + 1.0)  # running statistics that are not 0 and 1
    model.train(training)
    before = copy.deepcopy(model)(images())
    equi_normalize(model, sweeps=2)
    torch.testing.assert_close(copy.deepcopy(model)(images()), before, rtol=1e-10, atol=1e-10)


def test_running_statistics_go_with_the_channels():
    model = conv_net(lambda c: nn.BatchNorm2d(c))
    model(images())
    mean, var, rows = (t.clone() for t in (model[1].running_mean, model[1].running_var, model[0].weight.detach()))
    equi_normalize(model)
    d = (model[0].weight.detach() / rows).flatten(1).mean(1)
    torch.testing.assert_close(model[1].running_mean, d * mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(model[1].running_var, d**2 * var, rtol=1e-12, atol=0)


def test_an_epsilon_moves_the_function_by_as_much_as_is_said():
    """(1 - 1/d^2) eps / (2 var), relative, at the output of the batch norm."""
    eps = 1e-4
    norm = nn.BatchNorm1d(4, eps=eps)
    model = draw_parameters(nn.Sequential(nn.Linear(3, 4, bias=False), norm, nn.ReLU(), nn.Linear(4, 2)))
    x = torch.randn(50, 3, generator=make_generator(1), dtype=torch.float64)
    with torch.no_grad():
        norm.bias.zero_()
        before, var, rows = model[:2](x), model[0](x).var(0, unbiased=False), model[0].weight.clone()
        gamma = norm.weight.clone()
        equi_normalize(model)
        d = (model[0].weight / rows).mean(1)
        torch.testing.assert_close(norm.weight, d * gamma, rtol=1e-12, atol=0)
        ratio = (model[:2](x) / d / before).mean(0) - 1
    torch.testing.assert_close(ratio, (1 - d**-2) * eps / (2 * var), rtol=10 * eps / float((var * d**2).min()), atol=0)


def test_ignoring_the_batch_norms_changes_the_function():
    model = conv_net(lambda c: BatchNorm(c, eps=0.0))
    before, gamma = model(images()), model[1].weight.detach().clone()
    equi_normalize(model, bn="ignore")
    assert torch.equal(model[1].weight, gamma)
    assert float((model(images()) - before).detach().abs().max()) > 0.1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_a_sweep_never_enlarges_the_weights(p: float, bias: bool):
    model = unbalanced(relu_net(5, 8, 7, 6, 3), 3)
    counted = [t for n, t in model.named_parameters() if n.endswith("weight") or (bias and not n.startswith("6"))]
    sizes = []
    for _ in range(30):
        sizes.append(sum(float(t.detach().abs().pow(p).sum()) for t in counted))
        equi_normalize(model, p=p, bias=bias)
    assert all(after <= before * (1 + 4 * EPS) for before, after in itertools.pairwise(sizes))
    assert sizes[5] < 0.9 * sizes[0]


def test_each_step_of_a_sweep_takes_the_norms_the_last_one_left():
    """One sweep against exact coordinate descent written out; the norms of before the sweep give something else."""
    model = unbalanced(relu_net(4, 5, 6, 3, bias=False), 2)
    a, b, c = (layer.weight.detach().clone() for layer in model if isinstance(layer, nn.Linear))
    equi_normalize(model)
    d = (b.norm(dim=0) / a.norm(dim=1)).sqrt()
    a, b = d[:, None] * a, b / d
    d = (c.norm(dim=0) / b.norm(dim=1)).sqrt()
    b, c = d[:, None] * b, c / d
    for layer, expected in zip((model[0], model[2], model[4]), (a, b, c), strict=True):
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=8 * EPS, atol=0)


def test_the_minimum_is_the_same_from_wherever_it_is_approached():
    """T3."""
    one, other = (unbalanced(relu_net(4, 6, 5, 3, bias=False), seed) for seed in (1, 2))
    assert not torch.allclose(one[0].weight, other[0].weight, rtol=0.1)
    for model in (one, other):
        equi_normalize(model, sweeps=300)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-15)


def test_at_the_minimum_both_sides_of_every_channel_and_all_layers_weigh_the_same():
    model = relu_net(4, 6, 5, 3, bias=False)
    equi_normalize(model, sweeps=300)
    weights = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    for left, right in itertools.pairwise(weights):
        torch.testing.assert_close(left.norm(dim=1), right.norm(dim=0), rtol=1e-13, atol=0)
        torch.testing.assert_close(left.norm(), right.norm(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("c", [1.2, 0.7])
def test_with_an_asymmetry_the_right_side_is_so_many_times_the_left(c: float):
    """T4, also for a flattened convolution: the columns of a channel count together."""
    model = conv_net()
    equi_normalize(model, sweeps=300, c=c)
    left, middle, right = (model[i].weight.detach() for i in (0, 4, 8))
    torch.testing.assert_close(middle.transpose(0, 1).flatten(1).norm(dim=1), c * left.flatten(1).norm(dim=1))
    torch.testing.assert_close(right.view(5, 3, 4).norm(dim=(0, 2)), c * middle.flatten(1).norm(dim=1))


def test_biases_count_where_asked_and_move_in_any_case():
    model = relu_net(3, 4, 2)
    row, column, bias = (
        model[0].weight.detach().norm(dim=1),
        model[2].weight.detach().norm(dim=0),
        model[0].bias.detach(),
    )
    without, counted = copy.deepcopy(model), copy.deepcopy(model)
    equi_normalize(without)
    equi_normalize(counted, bias=True)
    torch.testing.assert_close(without[0].bias.detach(), bias * (column / row).sqrt())
    torch.testing.assert_close(counted[0].bias.detach(), bias * (column / torch.hypot(row, bias)).sqrt())


def test_dead_units_are_left_alone():
    model = relu_net(3, 4, 4, 2, bias=False)
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[4].weight[:, 2] = 0.0
    row, column = model[2].weight[2].detach().clone(), model[2].weight[:, 1].detach().clone()
    equi_normalize(model, [Stream(("0",), ("2",))])
    torch.testing.assert_close(model[2].weight[:, 1].detach(), column, rtol=0, atol=0)
    row = model[2].weight[2].detach().clone()
    equi_normalize(model, [Stream(("2",), ("4",))])
    torch.testing.assert_close(model[2].weight[2].detach(), row, rtol=0, atol=0)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_residual_stream_has_one_scale_and_the_function_stays():
    model = draw_parameters(ResNet((2, 8, 8), 3, norm=None, depth=8, widths=(4, 6, 5)))
    x = images()
    before = model(x)
    equi_normalize(model, sweeps=2)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    stream = max(find_streams(model), key=lambda s: len(s.writers))
    equi_normalize(model, [stream])
    modules = dict(model.named_modules())
    left = torch.cat([modules[n].weight.flatten(1) for n in stream.writers], 1).norm(dim=1)
    right = torch.cat([modules[n].weight.transpose(0, 1).flatten(1) for n in stream.readers], 1).norm(dim=1)
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("placement", ["pre-activation", "post-activation"])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_on_residual_streams_carry_the_scale_on(placement, training: bool):
    norm = functools.partial(BatchNorm, eps=0.0)
    model = draw_parameters(ResNet((2, 8, 8), 3, norm=norm, placement=placement, depth=8, widths=(4, 6, 5)))
    model(images() + 1)
    model.train(training)
    before, weight = copy.deepcopy(model)(images()), model.stem.conv.weight.detach().clone()
    equi_normalize(model, sweeps=2)
    torch.testing.assert_close(copy.deepcopy(model)(images()), before, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model.stem.conv.weight, weight, rtol=1e-2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_goes_on_as_if_the_weights_had_always_been_so(name: str):
    """What is linear in the gradient is divided by d, what is quadratic by d^2."""
    model = relu_net(3, 4, 2)
    optimizer = OPTIMIZERS[name](model.parameters())
    x = torch.randn(8, 3, generator=make_generator(1), dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    transform = EquiNormalization(model, optimizer)
    before = {k: {n: b.clone() for n, b in optimizer.state[p].items() if b.dim()} for k, p in model.named_parameters()}
    rows = model[0].weight.detach().clone()
    with torch.no_grad():
        transform.after_step()
    d = (model[0].weight.detach() / rows).mean(1)
    factors = {"0.weight": d[:, None], "0.bias": d, "2.weight": 1 / d, "2.bias": torch.ones(2)}
    for key, parameter in model.named_parameters():
        for buffer, old in before[key].items():
            power = 2 if buffer.endswith("sq") else 1
            torch.testing.assert_close(
                optimizer.state[parameter][buffer], old / factors[key] ** power, rtol=1e-12, atol=0
            )


def test_gradients_after_a_sweep_are_what_the_buffers_were_taken_for():
    model = relu_net(3, 4, 2)
    x = torch.randn(8, 3, generator=make_generator(1), dtype=torch.float64)
    old = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    rows = model[0].weight.detach().clone()
    equi_normalize(model)
    d = (model[0].weight.detach() / rows).mean(1)
    new = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    for before, after, factor in zip(old, new, (d[:, None], d, 1 / d, torch.ones(2)), strict=True):
        torch.testing.assert_close(after, before / factor, rtol=1e-10, atol=1e-14)


def groups(model: nn.Module) -> list[dict]:
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == many] for many in (True, False))
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def build(name: str):
    model = conv_net(lambda c: nn.BatchNorm2d(c))
    optimizer = OPTIMIZERS[name](groups(model))
    return model, optimizer, EquiNormalization(model, optimizer, c=1.1)


def step(model, optimizer, transform, index: int) -> None:
    optimizer.zero_grad()
    (model(images() + index) ** 2).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_training_goes_on_to_the_bit(name: str):
    assert_same_bits(after_resuming(lambda: build(name), step), without_a_break(lambda: build(name), step))


def test_every_step_ends_with_a_sweep():
    model, optimizer, _ = build("sgd")
    plain = copy.deepcopy(model)
    alone = OPTIMIZERS["sgd"](groups(plain))
    step(model, optimizer, None, 0)
    step(plain, alone, None, 0)
    equi_normalize(plain, c=1.1)
    assert_same_bits(model.state_dict(), plain.state_dict())


def test_a_gradient_scaler_changes_nothing():
    """Its factor is a power of two, so that unscaled gradients are the plain ones to the bit."""
    (plain, alone, _), (model, optimizer, _) = build("adam"), build("adam")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(2):
        step(plain, alone, None, index)
        optimizer.zero_grad()
        scaler.scale((model(images() + index) ** 2).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_same_bits(model.state_dict(), plain.state_dict())


def test_half_precision_is_balanced_in_single():
    model = relu_net(3, 4, 2).to(torch.bfloat16)
    with torch.no_grad():
        model[0].weight *= 1e-3
    equi_normalize(model)
    left, right = model[0].weight.float().norm(dim=1), model[2].weight.float().norm(dim=0)
    torch.testing.assert_close(left, right, rtol=2 * torch.finfo(torch.bfloat16).eps, atol=0)


def test_an_optimizer_with_unknown_buffers_is_refused():
    model = relu_net(3, 4, 2)
    optimizer = torch.optim.RMSprop(model.parameters())
    EquiNormalization(model, optimizer)
    with pytest.raises(ValueError, match=r"an optimizer whose buffers it knows .* got 'square_avg'; use SGD"):
        step(nn.Sequential(nn.Flatten(), nn.Linear(128, 3).double(), model), optimizer, None, 0)


def test_weights_that_the_optimizer_does_not_hold_are_refused():
    model = relu_net(3, 4, 2)
    with pytest.raises(ValueError, match="an optimizer of all the weights it rescales; got one without that of Linear"):
        EquiNormalization(model, torch.optim.SGD(model[0].parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"p": 0.0}, "p and c above 0; got p=0.0"), ({"c": -1.0}, "got p=2.0, c=-1.0"), ({"bn": "drop"}, "got 'drop'")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        equi_normalize(relu_net(3, 4, 2), **settings)
