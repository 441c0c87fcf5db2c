from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.data import APRPair, APRSingle, amplitude_phase_recombination
from normlens.data.amplitude_phase import wrapped

EPS = torch.finfo(torch.float64).eps
DIMS = [(-3, -2, -1), (-2, -1), (-1,)]


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def complex_result(a: Tensor, p: Tensor, dim: tuple[int, ...]) -> np.ndarray:
    """The definition, by NumPy's complex transform."""
    amplitude, phase = np.abs(np.fft.fftn(a.numpy(), axes=dim)), np.angle(np.fft.fftn(p.numpy(), axes=dim))
    return np.fft.ifftn(amplitude * np.exp(1j * phase), axes=dim)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 5, 7)])
def test_it_is_the_real_result_of_the_definition(dim, shape):
    """J (i): the imaginary part of the definition is rounding."""
    a, p = pictures(*shape), pictures(*shape, seed=1)
    expected = complex_result(a, p, dim)
    assert np.abs(expected.imag).max() < 1e-15
    found = amplitude_phase_recombination(a, p, dim=dim)
    np.testing.assert_allclose(found.numpy(), expected.real, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dim", DIMS)
def test_energy_and_mean_are_those_of_the_amplitudes(dim):
    """J (ii): Parseval, and the mean with the sign of that of the phase image."""
    a, p = pictures(4, 3, 8, 6), pictures(4, 3, 8, 6, seed=1)
    for sign in (1, -1):
        found = amplitude_phase_recombination(a, sign * p, dim=dim)
        energy = a.square().sum(dim)
        torch.testing.assert_close(found.square().sum(dim), energy, rtol=100 * EPS, atol=0)
        torch.testing.assert_close(found.mean(dim), sign * a.mean(dim), rtol=100 * EPS, atol=0)


def test_an_image_with_its_own_amplitudes_is_itself():
    """J (iii), also where the spectrum has holes."""
    x = pictures(3, 3, 8, 8)
    torch.testing.assert_close(amplitude_phase_recombination(x, x), x, rtol=0, atol=20 * EPS)
    flat = torch.full((1, 3, 8, 8), 0.25, dtype=torch.float64)
    torch.testing.assert_close(amplitude_phase_recombination(flat, flat), flat, rtol=0, atol=20 * EPS)


def test_the_result_leaves_the_range_of_images():
    """J (iv)."""
    found = amplitude_phase_recombination(pictures(8, 3, 8, 8), pictures(8, 3, 8, 8, seed=1))
    assert found.min() < 0
    assert found.max() > 1


def test_a_delta_has_the_phases_of_its_place():
    a, p = torch.tensor([3.0, 0, 0, 0]), torch.tensor([0.0, 2, 0, 0])
    expected = torch.tensor([0.0, 3, 0, 0])
    torch.testing.assert_close(amplitude_phase_recombination(a, p, dim=(-1,)), expected, rtol=0, atol=1e-6)


def test_what_the_phase_image_lacks_gets_phase_zero():
    """A constant and a cosine have phase 0 where they have any: the result is the amplitudes' own symmetric image."""
    a = pictures(1, 1, 8, 8)
    expected = np.fft.ifftn(np.abs(np.fft.fftn(a.numpy(), axes=(-3, -2, -1))), axes=(-3, -2, -1)).real
    wave = torch.cos(2 * torch.pi * torch.arange(8, dtype=torch.float64) / 8)
    for p in (torch.full_like(a, 0.1), (0.5 + 0.3 * wave).expand_as(a), (0.5 + 0.3 * wave)[:, None].expand_as(a)):
        found = amplitude_phase_recombination(a, p)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)


def test_half_precision_is_transformed_in_float32():
    a, p = (pictures(1, 3, 8, 8, seed=s).half() for s in (0, 1))
    found = amplitude_phase_recombination(a, p)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, amplitude_phase_recombination(a.float(), p.float()).half(), rtol=0, atol=0)


def test_a_pair_shows_the_batch_again_with_amplitudes_of_a_permutation():
    x, y = pictures(6, 3, 8, 8), torch.arange(6)
    both, labels = APRPair(1.0, clamp=False, generator=generator())(x, y)
    assert torch.equal(both[:6], x)
    assert torch.equal(labels, torch.cat([y, y]))
    energies = both[6:].square().sum((1, 2, 3))
    torch.testing.assert_close(energies.sort().values, x.square().sum((1, 2, 3)).sort().values)
    partner = (energies[:, None] - x.square().sum((1, 2, 3))).abs().argmin(1)
    assert sorted(partner.tolist()) == list(range(6))
    torch.testing.assert_close(both[6:], amplitude_phase_recombination(x[partner], x))


def test_a_pair_is_clamped_and_comes_in_the_given_share_of_batches():
    x, y = pictures(2, 1, 4, 4), torch.arange(2)
    augment = APRPair(generator=generator())
    lengths = [len(augment(x, y)[0]) for _ in range(1000)]
    assert set(lengths) == {2, 4}
    assert abs(lengths.count(4) / 1000 - 0.6) < 4 * (0.24 / 1000) ** 0.5
    both, _ = APRPair(1.0, generator=generator())(pictures(8, 3, 8, 8), torch.arange(8))
    assert (both.min(), both.max()) == (0, 1)


def test_the_same_generator_makes_the_same_images_and_the_global_state_is_left_alone(global_random_states):
    before = global_random_states()
    x, y = pictures(5, 3, 8, 8), torch.arange(5)
    for make in (APRPair, APRSingle):
        first, again, other = (make(1.0, generator=generator(seed))(x, y)[0] for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert global_random_states() == before


def test_a_single_image_of_severity_zero_keeps_what_the_geometric_operations_keep():
    """Without strength they are the identity, and an image recombined with itself is itself."""
    x = (pictures(40, 1, 6, 6) * 255).round() / 255
    found, _ = APRSingle(1.0, severity=0, generator=generator(1))(x, torch.arange(40))
    kept = (found - x).abs().amax((1, 2, 3)) < 1e-12
    assert 0.2 < kept.double().mean() < 0.7  # both operations of an image in 7 of 9 cases: (7/9)^2 = 0.6


@pytest.mark.parametrize("wrap", [False, True])
def test_single_images_keep_shape_labels_and_range(wrap):
    x, y = pictures(30, 3, 8, 8).float(), torch.arange(30)
    found, labels = APRSingle(severity=3, wrap=wrap, generator=generator())(x, y)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert labels is y
    assert found.min() >= 0
    assert found.max() <= 1
    assert all((found[i] - x[i]).abs().max() > 0 for i in range(30))


def test_without_recombination_a_single_image_is_one_operation_of_itself():
    from normlens.data.image_operations import autocontrast, equalize

    x = 0.2 + 0.3 * pictures(60, 1, 6, 6)
    found, _ = APRSingle(0.0, generator=generator())(x, torch.arange(60))
    for operation in (autocontrast, equalize):
        same = (found - operation(x)).abs().amax((1, 2, 3)) == 0
        assert 1 <= int(same.sum()) <= 20  # a ninth of 60 each


def test_wrapping_is_the_cast_to_bytes_of_c():
    levels = np.array([-0.9, -1.5, -40.2, 0.0, 12.7, 255.9, 256.0, 300.5])
    expected = levels.astype(np.int64).astype(np.uint8)
    found = wrapped(torch.from_numpy(levels / 255))
    np.testing.assert_array_equal((found * 255).round().numpy(), expected)


def test_signals_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"needs two signals of one shape; got .*; crop or resize"):
        amplitude_phase_recombination(torch.zeros(4), torch.zeros(5))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"APRPair needs p to be a probability; got 1\.2; choose"):
        APRPair(1.2, generator=generator())
    with pytest.raises(ValueError, match="APRSingle needs p to be a probability; got -1"):
        APRSingle(-1, generator=generator())
    with pytest.raises(ValueError, match="needs a severity from 0 to 10; got 11"):
        APRSingle(severity=11, generator=generator())
