from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normlens.models.cnn import CNN
from normlens.nn import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from normlens.optim import WeightRescaling
from support.resuming import (
    OPTIMIZERS,
    after_resuming,
    assert_same_bits,
    draw_parameters,
    make_generator,
    without_a_break,
)

EPS = torch.finfo(torch.float64).eps


def conv_net(norm=lambda c: BatchNorm(c, eps=0.0), bias: bool = True) -> nn.Sequential:
    first, second = nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.Conv2d(4, 6, 3, bias=bias)
    steps = [first, norm(4), nn.ReLU(), second, norm(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    return draw_parameters(nn.Sequential(*steps))


def images(n: int = 6, seed: int = 7) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=make_generator(seed), dtype=torch.float64)


def rescale(model: nn.Module, pairs=None, **settings) -> WeightRescaling:
    transform = WeightRescaling(model, torch.optim.SGD(model.parameters(), lr=0.1), pairs, **settings)
    with torch.no_grad():
        transform.after_step()
    return transform


def filters(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).norm(dim=1)


@pytest.mark.parametrize("granularity", ["filter", "layer"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_function_stays_in_train_and_in_eval_mode(granularity, training: bool, bias: bool):
    model = conv_net(bias=bias)
    for seed in range(3):
        model(2 * images(seed=seed) + 1)
    model.train(training)
    before = copy.deepcopy(model)(images())
    rescale(model, granularity=granularity)
    torch.testing.assert_close(copy.deepcopy(model)(images()), before, rtol=1e-12, atol=1e-12)


def test_without_fixing_the_statistics_eval_mode_jumps():
    model = conv_net()
    model(images())
    model.eval()
    before, mean = model(images()).detach(), model[1].running_mean.clone()
    rescale(model, norm=3.0, fix_running_stats=False)
    assert torch.equal(model[1].running_mean, mean)
    assert float((model(images()).detach() - before).abs().max()) > 0.1


def test_the_statistics_become_those_of_the_rescaled_output():
    """running_mean <- c (mean - b) + b, running_var <- c^2 var, with momentum 1: the statistics of the last batch."""
    model = conv_net(lambda c: BatchNorm(c, eps=0.0, momentum=1.0))
    model(images())
    rescale(model, norm=2.0)
    out = model[0](images()).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, out.mean(1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model[1].running_var, out.var(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", [1.0, 2.5])
def test_every_filter_or_every_layer_gets_the_norm(norm: float):
    by_filter, by_layer = conv_net(), conv_net()
    rescale(by_filter, norm=norm)
    rescale(by_layer, norm=norm, granularity="layer")
    for i in (0, 3):
        expected = torch.full((len(by_filter[i].weight),), norm, dtype=torch.float64)
        torch.testing.assert_close(filters(by_filter[i].weight), expected, rtol=8 * EPS, atol=0)
        assert float(by_layer[i].weight.detach().norm()) == pytest.approx(norm, rel=8 * EPS)


def test_nothing_else_is_touched():
    model = conv_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rescale(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"0.weight", "3.weight"} | {f"{i}.running_{s}" for i in (1, 4) for s in ("mean", "var")}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for index in range(steps):
        optimizer.zero_grad()
        (model(images(seed=index)) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_stay_fixed_while_any_optimizer_trains(name: str):
    model = conv_net(BatchNorm)
    optimizer = OPTIMIZERS[name](model.parameters())
    expected = filters(model[0].weight)
    WeightRescaling(model, optimizer, norm=None)
    train(model, optimizer)
    torch.testing.assert_close(filters(model[0].weight), expected, rtol=8 * EPS, atol=0)


def test_only_every_so_many_steps_rescale():
    model = conv_net(BatchNorm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    WeightRescaling(model, optimizer, interval=2)
    one = torch.ones(4, dtype=torch.float64)
    for due in (False, True, False, True):
        train(model, optimizer, 1)
        assert torch.allclose(filters(model[0].weight), one, rtol=8 * EPS) == due


def loss_gradient(model: nn.Module) -> Tensor:
    (gradient,) = torch.autograd.grad((model(images()) - 1).square().mean(), [model[0].weight])
    return gradient.flatten(1)


def test_a_normalized_filter_is_orthogonal_to_its_gradient_which_falls_as_it_grows():
    """I1: w . g = 0 and g(c w) = g(w) / c, so WRS multiplies the gradient by the norm it takes away."""
    model = conv_net()
    w, g = model[0].weight.detach().flatten(1).clone(), loss_gradient(model)
    assert float((w * g).sum(1).abs().max()) <= 1e-13 * float((w.norm(dim=1) * g.norm(dim=1)).max())
    rescale(model)
    torch.testing.assert_close(loss_gradient(model), g * w.norm(dim=1, keepdim=True), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_gradient_steps_lengthen_a_filter_by_pythagoras(decay: float):
    """I2: |w'|^2 = (1 - lr wd)^2 |w|^2 + lr^2 |g|^2; WRS takes the growth back."""
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=decay)
    before, g = filters(model[0].weight), loss_gradient(model)
    ((model(images()) - 1).square().mean()).backward()
    optimizer.step()
    expected = (1 - 0.2 * decay) ** 2 * before.square() + 0.04 * g.square().sum(1)
    torch.testing.assert_close(filters(model[0].weight).square(), expected, rtol=1e-12, atol=0)
    assert decay or bool((filters(model[0].weight) > before)[g.abs().sum(1) > 0].all())


def test_weight_noise_outside_the_inputs_span_shrinks_only_by_rescaling():
    """I3: gradients lie in the span of the inputs; w P is left by SGD and shrinks by |w_t| / |w_{t+1}| under WRS."""
    x = torch.randn(5, 9, generator=make_generator(3), dtype=torch.float64)
    outside = torch.eye(9, dtype=torch.float64) - torch.linalg.pinv(x) @ x
    for wrs in (False, True):
        model = draw_parameters(nn.Sequential(nn.Linear(9, 4, bias=False), BatchNorm(4, eps=0.0), nn.Linear(4, 2)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        transform = WeightRescaling(model, optimizer) if wrs else None
        noise = model[0].weight.detach() @ outside
        before = model[0].weight.detach().clone()
        (model(x) ** 3).mean().backward()
        free = before - 0.5 * model[0].weight.grad
        torch.testing.assert_close(model[0].weight.grad @ outside, torch.zeros(4, 9).double(), rtol=0, atol=1e-13)
        optimizer.step()
        factor = 1 / free.norm(dim=1, keepdim=True) if transform else torch.ones(4, 1).double()
        torch.testing.assert_close(model[0].weight.detach() @ outside, noise * factor, rtol=1e-12, atol=1e-14)


def test_a_filter_of_zero_stays():
    model = conv_net(BatchNorm)
    with torch.no_grad():
        model[0].weight[1] = 0.0
    rescale(model)
    torch.testing.assert_close(filters(model[0].weight), torch.tensor([1.0, 0, 1, 1]).double(), rtol=8 * EPS, atol=0)


@pytest.mark.parametrize(
    "norm", [lambda c: GroupNorm(c, groups=2, eps=0.0), lambda c: LayerNorm(c, eps=0.0), lambda c: RMSNorm(c, eps=0.0)]
)
def test_norms_across_channels_hide_the_scale_of_the_layer_alone(norm):
    model = conv_net(norm, bias=False)
    before = model(images())
    rescale(model, granularity="layer")
    torch.testing.assert_close(model(images()), before, rtol=1e-12, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"cannot be seen through: .*Norm after 0 and granularity='filter'; leave it out"
    ):
        rescale(model)
    with pytest.raises(ValueError, match="after 0 with a bias"):
        rescale(conv_net(norm), granularity="layer")


def test_instance_norms_hide_the_scale_of_every_filter():
    model = conv_net(lambda c: InstanceNorm(c, eps=0.0))
    before = model(images())
    rescale(model)
    torch.testing.assert_close(model(images()), before, rtol=1e-12, atol=1e-12)


def test_layers_are_found_where_a_norm_follows_directly():
    model = CNN((1, 8, 8), 10, norm="batch_norm")
    transform = rescale(model)
    assert [found.name for found in transform._normalized] == ["block1.conv", "block2.conv", "block3.conv"]


def test_pairs_may_be_given():
    model = conv_net()
    second = model[3].weight.detach().clone()
    rescale(model, {"0": "1"})
    assert torch.equal(model[3].weight.detach(), second)
    torch.testing.assert_close(filters(model[0].weight), torch.ones(4).double(), rtol=8 * EPS, atol=0)


def build(name: str, norm: float | None):
    model = conv_net(nn.BatchNorm2d)
    groups = [{"params": model[:3].parameters(), "weight_decay": 0.0}, {"params": model[3:].parameters()}]
    optimizer = OPTIMIZERS[name](groups)
    return model, optimizer, WeightRescaling(model, optimizer, norm=norm, interval=2)


@pytest.mark.parametrize("norm", [None, 1.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_training_goes_on_to_the_bit(name: str, norm: float | None):
    """Interrupted between two rescalings: the count and the norms of the beginning have to come along."""
    step = lambda model, optimizer, _, index: train(model, optimizer, 1 + index % 2)  # noqa: E731
    make = lambda: build(name, norm)  # noqa: E731
    assert_same_bits(after_resuming(make, step, before=1, after=4), without_a_break(make, step, steps=5))


def test_the_norms_of_the_beginning_come_with_the_state_and_not_from_the_weights_it_is_loaded_beside():
    model, other = conv_net(), conv_net()
    expected = filters(model[0].weight)
    with torch.no_grad():
        other[0].weight *= 3.0
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    transform = WeightRescaling(other, optimizer, norm=None)
    transform.load_state_dict(rescale(model, norm=None).state_dict())
    train(other, optimizer, 1)
    torch.testing.assert_close(filters(other[0].weight), expected, rtol=8 * EPS, atol=0)


def test_a_step_that_the_gradient_scaler_skips_is_no_step():
    model = conv_net(BatchNorm).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    transform = WeightRescaling(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = model[0].weight.detach().clone()
    scaler.scale(model(images().float()).sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert transform.steps == 0
    assert torch.equal(model[0].weight, before)


def test_a_model_without_norms_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="a weight layer that a normalization follows directly; got none"):
        rescale(model)


@pytest.mark.parametrize("pairs", [{"7": "nope"}, {"2": "1"}])
def test_pairs_that_do_not_exist_are_refused(pairs):
    with pytest.raises(ValueError, match="pairs of a weight layer that the optimizer steps and a norm; got"):
        rescale(conv_net(), pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"0": "1", "3": "1"}, "a norm of its own for each layer; got"),
        ({"0": "4"}, "a norm of the layer's output channels; got 6 after 0 with 4"),
    ],
)
def test_pairs_that_do_not_belong_together_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        rescale(conv_net(), pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": 0.0}, "a norm above 0 and an interval of at least 1; got norm=0.0"),
        ({"interval": 0}, "got norm=1.0 and interval=0"),
        ({"granularity": "row"}, "'filter' or 'layer'; got 'row'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        rescale(conv_net(), **settings)


def test_the_state_of_another_is_refused():
    model = conv_net()
    transform = rescale(model, norm=None)
    with pytest.raises(
        ValueError, match=r"the state of one for the same layers, \['0', '3'\]; got \['steps', 'targets'\]"
    ):
        transform.load_state_dict(rescale(conv_net()).state_dict())
