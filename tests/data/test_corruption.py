from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from normlens.data import corrupted, digits
from normlens.data.corruption import SEVERITIES, blur, brightness, contrast, gaussian_noise, rotation

EPS = torch.finfo(torch.float64).eps
PLAIN = [blur, contrast, brightness, rotation]


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_corruption_comes_at_each_severity_and_worsens_with_it():
    images = digits().test[0][:100]
    found = list(corrupted(images, generator=generator()))
    assert len(found) == 25
    for name in {one.name for one in found}:
        distances = [float((one.images - images).norm()) for one in found if one.name == name]
        assert [one.severity for one in found if one.name == name] == list(SEVERITIES)
        assert all(a < b for a, b in zip([0.0, *distances], distances, strict=False)), name
    assert all(one.images.shape == images.shape and one.images.dtype == images.dtype for one in found)
    assert all(one.images.min() >= 0 and one.images.max() <= 1 for one in found)


@pytest.mark.parametrize(("severity", "width"), [(1, 0.5), (3, 1.0), (5, 2.0)])
def test_blur_is_scipy_s_gaussian_filter(severity, width):
    x = pictures(2, 3, 16, 12)
    radius = math.ceil(3 * width)
    expected = ndimage.gaussian_filter(x.numpy(), width, axes=(2, 3), mode="nearest", radius=radius)
    np.testing.assert_allclose(blur(x, severity).numpy(), expected, rtol=20 * EPS)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_keeps_a_constant_and_the_mean_of_what_lies_inside(severity):
    constant = torch.full((1, 2, 8, 8), 0.3, dtype=torch.float64)
    torch.testing.assert_close(blur(constant, severity), constant, rtol=20 * EPS, atol=0)
    inside = torch.zeros(1, 1, 24, 24, dtype=torch.float64)
    inside[..., 8:16, 8:16] = pictures(8, 8)
    torch.testing.assert_close(blur(inside, severity).mean(), inside.mean(), rtol=20 * EPS, atol=0)


@pytest.mark.parametrize(("severity", "left"), [(1, 0.75), (2, 0.5), (3, 0.4), (4, 0.3), (5, 0.15)])
def test_contrast_keeps_the_mean_and_scales_the_deviation(severity, left):
    x = pictures(2, 3, 6, 6)
    y = contrast(x, severity)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)), rtol=20 * EPS, atol=0)
    torch.testing.assert_close(y.std((2, 3)), left * x.std((2, 3)), rtol=50 * EPS, atol=0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_a_tenth_for_each_severity_and_clamps(severity):
    x = torch.tensor([[[[0.0, 0.2, 0.9, 1.0]]]], dtype=torch.float64)
    expected = [min(v + severity / 10, 1.0) for v in (0.0, 0.2, 0.9, 1.0)]
    np.testing.assert_allclose(brightness(x, severity).numpy().ravel(), expected, rtol=2 * EPS)


def test_noise_has_the_standard_deviation_of_its_severity_and_is_its_generator_s():
    gray = torch.full((4, 1, 64, 64), 0.5, dtype=torch.float64)
    n = gray.numel()
    for severity, size in zip((1, 2, 3), (0.04, 0.08, 0.12), strict=True):  # 4 deviations from the clamp
        noise = gaussian_noise(gray, severity, generator=generator()) - gray
        assert abs(float(noise.std()) / size - 1) < 5 / math.sqrt(2 * n)
        assert abs(float(noise.mean())) < 5 * size / math.sqrt(n)
    first, again, other = (gaussian_noise(gray, 1, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rotations_undo_each_other_on_a_smooth_disk():
    """Turned by 30 degrees three times it is turned by 90; each bilinear reading errs by (|f_xx| + |f_yy|) h^2 / 8."""
    y, x = torch.meshgrid(*(torch.linspace(-3, 3, 33, dtype=torch.float64),) * 2, indexing="ij")
    bump = torch.exp(-((x - 0.8).square() + y.square()))[None, None]
    thrice = rotation(rotation(rotation(bump, 3), 3), 3)
    torch.testing.assert_close(thrice, torch.rot90(bump, 1, (2, 3)), rtol=0, atol=3 * 4 * (6 / 32) ** 2 / 8)
    assert (thrice - bump).abs().max() > 0.5


def test_the_global_random_state_is_left_alone(global_random_states):
    before = global_random_states()
    list(corrupted(pictures(2, 1, 8, 8), generator=generator()))
    assert global_random_states() == before


@pytest.mark.parametrize("corruption", PLAIN)
def test_a_severity_that_does_not_exist_is_refused(corruption):
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"needs a severity of 1, 2, 3, 4 or 5; got {severity}; 5 is the worst"):
            corruption(pictures(1, 1, 8, 8), severity)


@pytest.mark.parametrize("corruption", PLAIN)
def test_what_is_no_batch_of_images_is_refused(corruption):
    with pytest.raises(ValueError, match=f"{corruption.__name__} needs floating-point images"):
        corruption(torch.zeros(8, 8), 1)
