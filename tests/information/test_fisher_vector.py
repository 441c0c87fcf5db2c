"""Fisher vectors are gradients of the log-likelihood, scikit-image's (its sigma block negated), and batch norm's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.feature import fisher_vector as theirs
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor, nn

from normlens.information.fisher_vector import fim_rel_err, gaussian, improved, mixture
from normlens.information.gaussian_mixture import GaussianMixture, fit, fit_vectors
from normlens.nn import BatchNorm, MixtureNorm

D = torch.float64
EPS = torch.finfo(D).eps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def model_of(weights, means, variances) -> GaussianMixture:
    return GaussianMixture(*(torch.tensor(part, dtype=D) for part in (weights, means, variances)))


def two(distance: float) -> GaussianMixture:
    return model_of([[0.3, 0.7]], [[0, distance]], [[1, 1]])


def some_mixture(seed: int = 3) -> tuple[Tensor, GaussianMixture]:
    x = normal(400, 3, seed=seed) * torch.tensor([1, 2, 0.5])
    x[:150] += torch.tensor([4, -3, 1.0])
    return x, fit_vectors(x, 3)


def test_the_vector_by_hand():
    """T1: mean 1, standard deviation 2."""
    x = torch.tensor([1.0, 3, 5], dtype=D)[:, None]
    one = mixture(x, model_of([[1]], [[1]], [[4]]))
    np.testing.assert_allclose(one.mu.flatten(), [0, 1, 2], atol=1e-15)
    np.testing.assert_allclose(one.sigma.flatten(), [-1 / math.sqrt(2), 0, 3 / math.sqrt(2)], atol=1e-15)
    assert (one.pi == 0).all()


@pytest.mark.parametrize("shape", [(50, 4), (20, 3, 5, 6)])
def test_batch_norm_is_the_mean_block(shape):
    x = 3 * normal(*shape) + 10
    flat = x.movedim(1, -1).reshape(-1, shape[1])
    for layer in (BatchNorm(shape[1], affine=False), (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1])):
        y = layer.double().train()(x).movedim(1, -1).reshape_as(flat)
        found = gaussian(flat, eps=layer.eps)
        # A mean of three standard deviations loses two bits.
        np.testing.assert_allclose(found.mu, y.detach(), rtol=0, atol=32 * EPS)
        np.testing.assert_allclose(found.sigma, (y.detach().square() - 1) / math.sqrt(2), rtol=0, atol=128 * EPS)


def test_means_are_0_squares_of_the_mean_block_1_and_of_the_other_half_of_the_kurtosis_less_1():
    x = torch.cat([normal(500, 2).exp(), normal(500, 1), 1.0 - 2 * (torch.arange(500) % 2)[:, None]], 1)
    blocks = gaussian(x)
    kurtosis = ((x - x.mean(0)) ** 4).mean(0) / x.var(0, correction=0) ** 2
    for block in blocks:
        np.testing.assert_allclose(block.mean(0), 0, atol=1e-13)
    np.testing.assert_allclose(blocks.mu.square().mean(0), 1, rtol=1e-13)
    np.testing.assert_allclose(blocks.sigma.square().mean(0), (kurtosis - 1) / 2, rtol=1e-12, atol=1e-13)
    assert blocks.sigma[:, 3].abs().max() < 1e-15  # plus or minus one: nothing is left for the second block


@pytest.mark.parametrize("power", [1, 2, 0])
def test_the_gaussian_blocks_are_whitened_gradients_whatever_parametrizes_the_scale(power):
    """sigma, sigma^2 and ln sigma: F^(-1/2) times the gradient, with the information of each."""
    x, mu, sigma = normal(30, 1), torch.tensor(0.3, dtype=D), 1.7
    place = torch.tensor({1: sigma, 2: sigma**2, 0: math.log(sigma)}[power], dtype=D, requires_grad=True)
    center = mu.clone().requires_grad_()
    scale = {1: lambda p: p, 2: torch.sqrt, 0: torch.exp}[power](place)
    information = {1: 2 / sigma**2, 2: 1 / (2 * sigma**4), 0: 2.0}[power]
    found = mixture(x, model_of([[1]], [[0.3]], [[sigma**2]]))
    for i in range(len(x)):
        log_density = -0.5 * ((x[i] - center) / scale).square().sum() - scale.log()
        by_mu, by_scale = torch.autograd.grad(log_density, (center, place), retain_graph=True)
        assert found.mu[i].item() == pytest.approx(by_mu.item() * sigma, rel=1e-12, abs=1e-14)
        assert found.sigma[i].item() == pytest.approx(by_scale.item() / math.sqrt(information), rel=1e-11, abs=1e-13)


def test_the_mixture_s_blocks_are_normalized_gradients_of_the_log_likelihood():
    x, model = some_mixture()
    logits = model.weights.log().requires_grad_()
    means, deviations = model.means.clone().requires_grad_(), model.variances.sqrt().requires_grad_()
    z = (x.unsqueeze(1) - means) / deviations
    joint = logits.log_softmax(0) + (-0.5 * z.square() - deviations.log()).sum(2) - 1.5 * math.log(2 * math.pi)
    total = joint.logsumexp(1).sum()
    by_logit, by_mean, by_deviation = torch.autograd.grad(total, (logits, means, deviations))
    found = mixture(x, model)
    root = model.weights.sqrt()
    # Weights as a softmax, as Sanchez et al. have them: the gradient is sum gamma - lambda.
    np.testing.assert_allclose(found.pi.sum(0), (by_logit / root).detach(), rtol=1e-11, atol=1e-10)
    scale = deviations.detach() / root[:, None]
    np.testing.assert_allclose(found.mu.sum(0), by_mean * scale, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.sigma.sum(0), by_deviation * scale / math.sqrt(2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("better", [False, True])
def test_it_is_scikit_image_s_with_the_sign_of_the_sigma_block_turned(better):
    x, model = some_mixture()
    other = SklearnMixture(3, covariance_type="diag")
    other.weights_, other.means_, other.covariances_ = (
        part.numpy() for part in (model.weights, model.means, model.variances)
    )
    other.precisions_cholesky_ = 1 / np.sqrt(other.covariances_)
    few = x[:60]
    expected = theirs(few.numpy(), other, improved=better)
    expected[3 + 9 :] *= -1
    pooled = mixture(few, model).pooled()
    found = improved(pooled) if better else pooled
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert np.abs(expected[12:]).max() > 1e-2  # so that the sign is tested


def test_channels_are_vectors_of_one_dimension_each():
    x = normal(300, 2) + 5 * (torch.arange(300) % 2)[:, None]
    model = fit(x, 2)
    whole = mixture(x, model)
    assert whole.flat.shape == (300, 2, 6)
    for c in range(2):
        single = GaussianMixture(model.weights[c], model.means[c, :, None], model.variances[c, :, None])
        np.testing.assert_allclose(mixture(x[:, [c]], single).flat, whole.flat[:, c], rtol=1e-13)


def test_one_component_is_the_gaussian_and_a_dropped_one_is_nothing():
    x = normal(200, 2) + 7
    one, blocks = mixture(x, fit(x, 1)), gaussian(x)
    np.testing.assert_allclose(one.mu[..., 0], blocks.mu, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(one.sigma[..., 0], blocks.sigma, rtol=1e-11, atol=1e-13)
    padded = mixture(x[:, :1], model_of([[1, 0]], [[7, 3]], [[1, 1]]))
    assert (padded.flat[:, 0, 1::2] == 0).all()
    assert padded.mu[:, 0, 0].abs().max() > 1


def test_mixture_norm_adds_the_mean_blocks_up():
    """T2, and P9: hard posteriors make its variance K, and one component makes it batch norm."""
    x = torch.tensor([-11.0, -9, 9, 11], dtype=D)[:, None]
    model = model_of([[0.5, 0.5]], [[-10, 10]], [[1, 1]])
    found = mixture(x, model).mu.sum(2)
    root = math.sqrt(2)
    np.testing.assert_allclose(found[:, 0], [-root, root, -root, root], atol=1e-14)
    layer = MixtureNorm(1, components=2, gmm="channel", eps=0.0, affine=False).double()
    np.testing.assert_allclose(found, layer(x), atol=1e-9)
    np.testing.assert_allclose(gaussian(x).mu[:, 0], np.array([-11, -9, 9, 11]) / math.sqrt(101), rtol=1e-14)
    many = normal(400, 1) + 40.0 * (torch.arange(400) % 4)[:, None]
    summed = mixture(many, fit(many, 4, bins=None)).mu.sum(2)
    assert summed.mean().abs() < 1e-9
    assert summed.var(correction=0).item() == pytest.approx(4, rel=1e-9)


def exact_mean_block(distance: float) -> np.ndarray:
    """The Fisher information of the two means of :func:`two`, by the trapezoidal rule: to all digits for Gaussians."""
    grid = np.linspace(-12, distance + 12, 20_001)
    parts = [w * np.exp(-0.5 * (grid - m) ** 2) / math.sqrt(2 * math.pi) for w, m in ((0.3, 0), (0.7, distance))]
    density = sum(parts)
    scores = [part / density * (grid - m) for part, m in zip(parts, (0, distance), strict=True)]
    return np.array([[np.trapezoid(a * b * density, grid) for a in scores] for b in scores])


@pytest.mark.parametrize(("distance", "first", "second", "off"), [(1, 0.136, 0.485, 0.104), (3, 0.202, 0.560, -0.079), (6, 0.293, 0.692, -0.008)])  # fmt: skip  # noqa: E501
def test_the_information_of_overlapping_components_is_not_the_diagonal_one(distance, first, second, off):
    exact = exact_mean_block(distance)
    np.testing.assert_allclose(exact, [[first, off], [off, second]], atol=2e-3)  # Monte Carlo of 4e5 in the notes


@pytest.mark.parametrize(("distance", "within"), [(6, True), (1, False)])
def test_whitening_by_the_exact_information_agrees_with_the_diagonal_where_modes_are_apart(distance, within):
    """T3: at six standard deviations to 3 %, at one it must not."""
    part = (torch.arange(1000) >= 300).to(D)
    x = (normal(1000) + distance * part)[:, None]
    diagonal = mixture(x, two(distance)).mu[:, 0].numpy()
    scores = diagonal * np.sqrt([0.3, 0.7])  # the gradients by the means; both variances are 1
    values, vectors = np.linalg.eigh(exact_mean_block(distance))
    exact = scores @ (vectors / np.sqrt(values)) @ vectors.T
    off = np.linalg.norm(exact - diagonal) / np.linalg.norm(exact)
    assert off < 0.03 if within else off > 0.3


@pytest.mark.parametrize("distance", [1.0, 3.0, 6.0])
def test_the_error_of_the_diagonal_is_that_of_quadrature_within_its_error(distance):
    model = two(distance)
    grid = torch.linspace(-12, distance + 12, 20_001, dtype=D)[:, None]
    blocks = mixture(grid, model)
    g = torch.cat([blocks.mu, blocks.sigma], -1)[:, 0]
    density = model.log_density(grid).exp()
    matrix = torch.trapezoid(g[:, :, None] * g[:, None, :] * density[:, :, None], dx=24 / 20_000, dim=0)
    matrix *= (distance + 24) / 24
    exact = ((matrix - torch.eye(4)).norm() / 2).item()
    found = [fim_rel_err(model, generator=torch.Generator().manual_seed(s)) for s in range(40)]
    values = torch.cat([one.value for one in found])
    stated = torch.cat([one.error for one in found])
    assert abs(values.mean().item() - exact) < 4 * values.std().item() / math.sqrt(40)
    assert 0.4 < stated.square().mean().sqrt() / values.std() < 2.5


def test_the_diagonal_is_exact_for_one_gaussian_and_the_estimate_knows_it():
    found = fim_rel_err(model_of([[1, 0], [0.5, 0.5]], [[0, 1], [0, 100]], [[1, 1], [1, 1]]))
    assert (found.value < 4 * found.error).all()
    assert (found.error < 0.1).all()
    vectors = fim_rel_err(model_of([0.5, 0.5], [[0, 0], [1, 0]], [[1, 1], [1, 1]]))
    assert vectors.value > 0.3
    assert vectors.value > 10 * vectors.error


def test_the_improved_form_has_length_one_and_signed_roots():
    v = torch.tensor([[4.0, -9.0, 0.0], [0, 0, 0]], dtype=D)
    np.testing.assert_allclose(improved(v)[0], np.array([2, -3, 0]) / math.sqrt(13), rtol=1e-15)
    assert (improved(v)[1] == 0).all()
    np.testing.assert_allclose(improved(v, alpha=1.0)[0], v[0] / math.sqrt(97), rtol=1e-15)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match=r"values \(N, C\), N at least 1; got \(3,\)"):
        gaussian(torch.zeros(3))
    with pytest.raises(ValueError, match="alpha from 0 to 1; got 2"):
        improved(torch.ones(3), alpha=2)
    with pytest.raises(ValueError, match="3 repeats and 1 draw at least; got 2 and 256"):
        fim_rel_err(two(1), repeats=2)
