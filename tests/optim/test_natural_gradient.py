from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap

from normlens.optim import NaturalGradient
from support.resuming import (
    OPTIMIZERS,
    after_resuming,
    assert_same_bits,
    draw_parameters,
    make_generator,
    without_a_break,
)


def numbers(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=make_generator(seed), dtype=torch.float64)


def classes(n: int, k: int) -> Tensor:
    return torch.randint(0, k, (n,), generator=make_generator(6))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def take_a_step(model: nn.Module, loss, x: Tensor, y: Tensor, *, lr: float = 1.0, **settings) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    natural = NaturalGradient(model, optimizer, loss, **settings)
    loss(model(x), y).backward()
    natural.observe(x, y)
    optimizer.step()


class Linked(nn.Module):
    """A nonlinear model of theta = A phi."""

    def __init__(self, matrix: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.phi = nn.Parameter(torch.linalg.solve(matrix, theta))

    @property
    def theta(self) -> Tensor:
        return self.matrix @ self.phi

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.theta.view(3, 2)).tanh()


@pytest.mark.parametrize("fisher", ["exact", "empirical", "ggn"])
def test_the_step_does_not_depend_on_how_the_parameters_are_written(fisher):
    x, y, theta = numbers(30, 3), numbers(30, 2, seed=8), numbers(6, seed=9)
    plain, linked = Linked(torch.eye(6, dtype=torch.float64), theta), Linked(numbers(6, 6), theta)
    take_a_step(plain, F.mse_loss, x, y, lr=0.3, fisher=fisher, damping=0.0)
    take_a_step(linked, F.mse_loss, x, y, lr=0.3, fisher=fisher, damping=0.0)
    assert float((plain.theta - theta).detach().norm()) > 1e-2
    torch.testing.assert_close(linked.theta, plain.theta, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("fisher", ["exact", "ggn"])
def test_least_squares_are_solved_in_one_step(fisher):
    model, x, y = draw_parameters(nn.Linear(4, 3)), numbers(20, 4), numbers(20, 3, seed=8)
    take_a_step(model, F.mse_loss, x, y, fisher=fisher, damping=0.0)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1), y).solution
    torch.testing.assert_close(torch.cat([model.weight.T, model.bias[None]]).detach(), solution, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("fisher", ["exact", "ggn"])
def test_logistic_regression_takes_a_newton_step(fisher):
    model, x, y, damping = draw_parameters(nn.Linear(4, 3)), numbers(20, 4), classes(20, 3), 1e-2
    theta, sizes = flat(model), [12, 3]

    def loss(t: Tensor) -> Tensor:
        weight, bias = t.split(sizes)
        return F.cross_entropy(x @ weight.view(3, 4).T + bias, y)

    newton = torch.linalg.solve(hessian(loss)(theta) + damping * torch.eye(15, dtype=torch.float64), grad(loss)(theta))
    take_a_step(model, F.cross_entropy, x, y, fisher=fisher, damping=damping)
    torch.testing.assert_close(flat(model), theta - newton, rtol=1e-11, atol=1e-12)


def test_binary_logistic_regression_takes_a_newton_step_without_damping():
    model, x, y = (
        nn.Sequential(draw_parameters(nn.Linear(3, 1)), nn.Flatten(0)),
        numbers(20, 3),
        classes(20, 2).double(),
    )
    theta = flat(model)
    loss = lambda t: F.binary_cross_entropy_with_logits(x @ t[:3] + t[3], y)  # noqa: E731
    newton = torch.linalg.solve(hessian(loss)(theta), grad(loss)(theta))
    take_a_step(model, F.binary_cross_entropy_with_logits, x, y, fisher="ggn", damping=0.0)
    torch.testing.assert_close(flat(model), theta - newton, rtol=1e-11, atol=1e-12)


def mlp() -> nn.Module:
    return draw_parameters(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def per_sample(model: nn.Module, loss, x: Tensor, y: Tensor) -> Tensor:
    """Gradients of every sample, (N, P), by torch.func."""
    theta = dict(model.named_parameters())
    one = lambda t, a, b: loss(functional_call(model, t, (a[None],)), b[None])  # noqa: E731
    found = vmap(grad(one), (None, 0, 0))(theta, x, y)
    return torch.cat([g.detach().flatten(1) for g in found.values()], 1)


def natural(model: nn.Module, loss, **settings) -> NaturalGradient:
    return NaturalGradient(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, **settings)


@pytest.mark.parametrize("n", [7, 200])
def test_the_exact_matrix_is_the_expectation_over_the_models_own_labels(n: int):
    """Also in parts: 200 samples of 3 classes are more rows than are taken at a time."""
    model, x = mlp(), numbers(n, 4)
    p = model(x).softmax(1).detach()
    expected = torch.zeros(43, 43, dtype=torch.float64)
    for label in range(3):
        g = per_sample(model, F.cross_entropy, x, torch.full((n,), label))
        expected += (p[:, label, None] * g).T @ g / n
    found = natural(model, F.cross_entropy).matrix(x, classes(n, 3))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_the_empirical_matrix_takes_the_labels_of_the_data():
    model, x, y = mlp(), numbers(9, 4), classes(9, 3)
    g = per_sample(model, F.cross_entropy, x, y)
    found = natural(model, F.cross_entropy, fisher="empirical").matrix(x, y)
    torch.testing.assert_close(found, g.T @ g / 9, rtol=1e-11, atol=1e-14)


def test_the_gauss_newton_matrix_is_that_of_any_loss():
    """For sum (f - y)^4 / N the Hessian by the outputs is 12 (f - y)^2 / N."""
    model, x, y = mlp(), numbers(9, 4), numbers(9, 3, seed=8)
    fourth = lambda f, t: ((f - t) ** 4).sum(1).mean()  # noqa: E731
    theta = dict(model.named_parameters())
    jacobian = torch.func.jacrev(lambda t: functional_call(model, t, (x,)))(theta)
    rows = torch.cat([j.detach().flatten(2) for j in jacobian.values()], 2)
    weights = 12 * (model(x).detach() - y) ** 2 / 9
    found = natural(model, fourth, fisher="ggn").matrix(x, y)
    torch.testing.assert_close(found, torch.einsum("ncp,nc,ncq->pq", rows, weights, rows), rtol=1e-11, atol=1e-14)


def test_damping_is_added_to_the_matrix():
    model, x, y = mlp(), numbers(9, 4), classes(9, 3)
    theta = flat(model)
    g = per_sample(model, F.cross_entropy, x, y).mean(0)
    matrix = natural(model, F.cross_entropy).matrix(x, y)
    take_a_step(model, F.cross_entropy, x, y, lr=0.5, damping=0.1)
    expected = theta - 0.5 * torch.linalg.solve(matrix + 0.1 * torch.eye(43, dtype=torch.float64), g)
    torch.testing.assert_close(flat(model), expected, rtol=1e-11, atol=1e-13)


def test_only_parameters_with_a_gradient_take_part():
    model, x, y = mlp(), numbers(9, 4), classes(9, 3)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    head, theta = copy.deepcopy(model[2]), flat(model[0])
    take_a_step(model, F.cross_entropy, x, y, damping=0.1)
    take_a_step(head, F.cross_entropy, model[:2](x).detach(), y, damping=0.1)
    torch.testing.assert_close(flat(model[2]), flat(head), rtol=1e-12, atol=0)
    assert torch.equal(flat(model[0]), theta)


def test_the_evaluation_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    x, y = numbers(9, 4).float(), classes(9, 3)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    natural(model, F.cross_entropy).matrix(x, y)
    assert_same_bits(model.state_dict(), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def build(name: str):
    model = mlp()
    optimizer = OPTIMIZERS[name]([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-3}])
    return model, optimizer, NaturalGradient(model, optimizer, F.cross_entropy, damping=0.1)


def step(model, optimizer, transform, index: int) -> None:
    x, y = numbers(9, 4, seed=index), classes(9, 3)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    transform.observe(x, y)
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_training_goes_on_to_the_bit(name: str):
    assert_same_bits(after_resuming(lambda: build(name), step), without_a_break(lambda: build(name), step))


def test_a_gradient_scaler_changes_nothing():
    """Its factor is a power of two, so that unscaled gradients are the plain ones to the bit."""
    (plain, alone, own), (model, optimizer, transform) = build("sgd"), build("sgd")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(2):
        step(plain, alone, own, index)
        x, y = numbers(9, 4, seed=index), classes(9, 3)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        transform.observe(x, y)
        scaler.step(optimizer)
        scaler.update()
    assert_same_bits(model.state_dict(), plain.state_dict())


def test_more_parameters_than_a_dense_matrix_can_take_are_refused():
    with pytest.raises(ValueError, match="at most 5000 parameters, for it solves with a dense matrix; got 5050; give"):
        natural(nn.Linear(100, 50), F.mse_loss)


def test_every_step_needs_its_batch():
    model, optimizer, transform = build("sgd")
    step(model, optimizer, transform, 0)
    with pytest.raises(ValueError, match=r"the batch of every step; got none since the last one; call observe"):
        optimizer.step()


def test_a_singular_matrix_is_refused():
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()  # the hidden units are constant, so that their weights are one direction
        model[0].bias.zero_()
        model[2].weight.zero_()
    with pytest.raises(ValueError, match=r"positive definite matrix; got a singular one with damping=0.0; raise"):
        take_a_step(model, F.cross_entropy, numbers(9, 4), classes(9, 3), damping=0.0)


def test_the_exact_matrix_knows_two_losses():
    with pytest.raises(ValueError, match="the negative log likelihood that belongs to its distribution"):
        natural(mlp(), lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1)).matrix(numbers(9, 4), classes(9, 3))
    with pytest.raises(ValueError, match="the negative log likelihood that belongs to its distribution"):
        natural(mlp(), F.l1_loss).matrix(numbers(9, 4), numbers(9, 3))
    with pytest.raises(ValueError, match=r"targets like the outputs; got outputs \(9, 3\) and .* targets \(9, 2\)"):
        natural(mlp(), F.mse_loss).matrix(numbers(9, 4), numbers(9, 2))


def test_a_perfect_fit_is_no_other_loss():
    model, x = mlp(), numbers(9, 4)
    matrix = natural(model, F.mse_loss).matrix(x, model(x).detach())
    torch.testing.assert_close(matrix, natural(model, F.mse_loss, fisher="ggn").matrix(x, numbers(9, 3)))


def test_outputs_must_be_rows_of_numbers():
    model = draw_parameters(nn.Conv1d(1, 2, 3))
    with pytest.raises(ValueError, match=r"outputs \(N, C\) or \(N,\) that depend on the parameters; got \(4, 2, 5\)"):
        natural(model, F.mse_loss).matrix(numbers(4, 1, 7), numbers(4, 2, 5))


def test_the_loss_must_see_the_outputs():
    with pytest.raises(ValueError, match="the loss must depend on the outputs"):
        natural(mlp(), lambda f, y: y.sum(), fisher="ggn").matrix(numbers(9, 4), numbers(9, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"fisher": "true"}, "'exact', 'empirical' or 'ggn'; got 'true'"), ({"damping": -1.0}, "at least 0; got -1.0")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        natural(mlp(), F.cross_entropy, **settings)
