"""Ranks and residuals with known answers (theory, section I), and the whole Jacobian against torch.func in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional

from normlens.probes.representation_alignment import RepresentationAlignment, alignment
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(*, norm: bool = False) -> nn.Module:
    middle = [nn.BatchNorm1d(5)] if norm else []
    model = nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Linear(5, 2)).double()
    for seed, p in enumerate(model.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed + 10))
    return model


def read(model, data, loss=functional.mse_loss, mode=None, **settings):
    risk = EmpiricalRisk(model, loss, data, mode=mode)
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {reading.name: reading.value for reading in RepresentationAlignment(**settings)(step)}


X, Y = normal(8, 3), normal(8, 2, seed=1)


def test_a_wide_network_is_aligned_with_every_target():
    """I: a tanh MLP 3-5-2 on 8 samples has a Jacobian 16 x 32 of rank 16."""
    found = read(mlp(), (X, Y))
    assert (found["rows"], found["rank"]) == (16, 16)
    assert found["residual"] < 1e-13
    assert found["structure_residual"] < 1e-13
    assert found["smallest_singular"] > 1e-6


def test_the_same_input_with_two_labels_can_never_be_aligned():
    """I: x_2 = x_1 leaves rank 14, and the label e_1 - e_2 has residual 1."""
    x, y = X.clone(), torch.zeros(8, 2, dtype=torch.float64)
    x[1] = x[0]
    y[0, 0], y[1, 0] = 1, -1
    found = read(mlp(), (x, y))
    assert found["rank"] == 14
    assert found["residual"] == pytest.approx(1, abs=1e-13)
    assert found["residual_last"] == pytest.approx(1, abs=1e-13)
    assert found["smallest_singular"] < 1e-13


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_rank_and_residual_are_those_of_the_dense_jacobian(mode):
    """Also where batch norm lets every output depend on every sample."""
    model, x, y = mlp(norm=True).train(mode == "train"), X[:7], Y[:7]
    theta = {name: p.detach() for name, p in model.named_parameters() if name.startswith(("0", "1"))}
    for name, p in model.named_parameters():
        p.requires_grad_(name in theta)

    def outputs(t: dict[str, Tensor]) -> Tensor:
        z = functional.linear(x, t["0.weight"], t["0.bias"])
        mean, var = (
            (z.mean(0), z.var(0, correction=0)) if mode == "train" else (0.0, torch.ones((), dtype=torch.float64))
        )
        z = (z - mean) / (var + model[1].eps).sqrt() * t["1.weight"] + t["1.bias"]
        return functional.linear(torch.tanh(z), model[3].weight.detach(), model[3].bias.detach()).flatten()

    dense = torch.cat([part.flatten(1) for part in jacrev(outputs)(theta).values()], 1).detach().numpy()
    found = read(model, (x, y), mode=mode)
    assert found["rank"] == np.linalg.matrix_rank(dense)
    solution, *_ = np.linalg.lstsq(dense, y.numpy().ravel())
    expected = np.linalg.norm(dense @ solution - y.numpy().ravel()) / float(y.norm())
    assert found["residual"] == pytest.approx(expected, abs=1e-10)
    assert found["smallest_singular"] == pytest.approx(np.linalg.svd(dense)[1][-1], abs=1e-12)


def test_the_last_layer_alone_has_the_residual_of_least_squares_on_features():
    """[h, 1] of width 6 cannot reach 8 random targets; the cheap form is the dense one."""
    model = mlp()
    found = read(model, (X, Y))
    features = torch.cat([torch.tanh(model[0](X)), torch.ones(8, 1, dtype=torch.float64)], 1).detach()
    fitted = features @ torch.linalg.lstsq(features, Y).solution
    assert found["residual_last"] == pytest.approx(float((fitted - Y).norm() / Y.norm()), rel=1e-10)
    assert found["rank_last"] == 12
    frozen = mlp()
    frozen[0].requires_grad_(False)
    only = read(frozen, (X, Y))
    assert only["residual"] == pytest.approx(found["residual_last"], rel=1e-10)
    assert only["rank"] == 12


def test_where_the_network_interpolates_the_condition_holds():
    """N: f = J_S theta_S, so targets that are the outputs are aligned, however narrow the network."""
    model = mlp()
    x = normal(40, 3, seed=2)
    found = read(model, (x, model(x).detach()), samples=40)
    assert found["rank"] < found["rows"]
    assert found["residual"] < 1e-13
    assert found["residual_last"] < 1e-13


def test_a_last_layer_that_is_not_linear_in_its_parameters_lacks_the_structure():
    """Of spectral norm the outputs do not depend on the length of the weight: J_S theta_S is the bias alone."""
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2, bias=False).double(), n_power_iterations=50)
    found = read(nn.Sequential(linear), (X, Y), mode="eval")
    assert found["structure_residual"] == pytest.approx(1, abs=1e-6)
    assert "residual_last" not in found


def test_a_bias_that_is_not_trained_belongs_to_no_column():
    model = mlp()
    model[2].bias.requires_grad_(False)
    found = read(model, (X, Y))
    assert found["rank_last"] == 10
    expected = math.sqrt(8) * float(model[2].bias.detach().norm()) / float(model(X).detach().norm())
    assert found["structure_residual"] == pytest.approx(expected, rel=1e-12)


def test_class_indices_are_one_hot_rows_and_ignored_ones_are_zero():
    classes = torch.tensor([0, 1, 1, 0, -1, 1, 0, 1])
    hot = torch.zeros(8, 2, dtype=torch.float64)
    hot[torch.arange(8), classes.clamp(min=0)] = 1
    hot[4] = 0
    by_index = read(mlp(), (X, classes), functional.cross_entropy)
    assert by_index == read(mlp(), (X, hot))


def test_a_large_network_is_asked_for_its_last_layer_only():
    whole, part = read(mlp(), (X, Y)), read(mlp(), (X, Y), largest=16 * 32 - 1)
    assert read(mlp(), (X, Y), largest=16 * 32) == whole
    assert part == {name: whole[name] for name in ("rows_last", "rank_last", "residual_last")}


def test_the_last_layer_has_samples_of_its_own():
    x, y = normal(40, 3, seed=2), normal(40, 2, seed=3)
    found = read(mlp(), (x, y), samples=8, samples_last=20)
    assert (found["rows"], found["rows_last"]) == (16, 40)
    assert found["residual"] == read(mlp(), (x[:8], y[:8]))["residual"]
    assert found["residual_last"] == read(mlp(), (x[:20], y[:20]))["residual_last"]


def test_float32_networks_are_measured_in_float64_and_left_as_they_are():
    model = mlp().float()
    found = read(model, (X.float(), Y.float()))
    assert found["rank"] == 16
    assert found["residual"] < 1e-12
    assert found["structure_residual"] < 1e-13
    assert model[0].weight.dtype == torch.float32


def test_alignment_of_a_plane_and_a_vector_at_an_angle():
    plane = torch.eye(3, dtype=torch.float64)[:, :2] @ normal(2, 5)
    y = torch.tensor([math.cos(0.3), 0.0, math.sin(0.3)], dtype=torch.float64)
    found = alignment(plane, y)
    assert found.rank == 2
    assert found.residual == pytest.approx(math.sin(0.3), rel=1e-13)
    assert math.isnan(alignment(plane, y * math.nan).residual)


def test_what_cannot_be_answered_is_refused():
    with pytest.raises(ValueError, match=r"needs targets like the outputs \(8, 2\), or class indices; got \(8,\)"):
        read(mlp(), (X, torch.arange(8)))
    with pytest.raises(ValueError, match="needs at least one trainable parameter"):
        read(mlp().requires_grad_(False), (X, Y))
    with pytest.raises(ValueError, match=r"a Jacobian of at most 9 numbers or a last layer .* raise largest, or lower"):
        read(nn.Sequential(mlp(), nn.Softmax(1)), (X, Y), largest=9)
