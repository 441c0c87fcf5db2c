"""Norms, angles and dependence of units are what dense linear algebra says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normlens.probes import unit_redundancy
from normlens.probes.unit_redundancy import dependence_readings, incoming_readings, outgoing_readings


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(readings):
    return {reading.name: reading.value for reading in readings}


def conv(units=5):
    layer = nn.Conv2d(3, units, 2).double()
    layer.weight.data = normal(units, 3, 2, 2, seed=1)
    return layer


def test_overlap_is_the_largest_cosine_with_another_unit_whatever_its_sign():
    layer = conv()
    layer.weight.data[3] = -2 * layer.weight.data[1]
    found = values(incoming_readings("act", layer))
    rows = layer.weight.detach().flatten(1).numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.abs(unit @ unit.T) - np.eye(5)
    np.testing.assert_allclose(found["overlap"], cosines.max(1), rtol=1e-13)
    assert found["overlap"][[1, 3]] == pytest.approx([1, 1], rel=1e-14)
    np.testing.assert_allclose(found["incoming_norm"], np.linalg.norm(rows, axis=1), rtol=1e-14)
    assert found["overlap_mean"] == pytest.approx(np.corrcoef(rows)[np.triu_indices(5, 1)].mean(), rel=1e-12)


def test_a_unit_without_weights_overlaps_with_none_and_a_single_unit_is_not_asked():
    layer = conv()
    layer.weight.data[2] = 0
    found = values(incoming_readings("act", layer))
    assert (found["incoming_norm"][2], found["overlap"][2]) == (0, 0)
    assert set(values(incoming_readings("act", conv(1)))) == {"incoming_norm"}


def test_outgoing_weights_are_those_of_all_readers_and_of_every_place_of_a_flattened_image():
    first, second = nn.Linear(6, 4, bias=False).double(), conv()
    first.weight.data, second.weight.data = normal(4, 6, seed=2), normal(5, 3, 2, 2, seed=3)
    found = values(outgoing_readings("act", 3, [first, second]))["outgoing_norm"]
    a, b = first.weight.detach().numpy(), second.weight.detach().numpy()
    expected = [np.sqrt((a[:, 2 * c : 2 * c + 2] ** 2).sum() + (b[:, c] ** 2).sum()) for c in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_dependence_is_the_ratio_of_the_ends_of_the_gram_spectrum():
    h = normal(40, 3, 12).square()
    found = values(dependence_readings("act", h))
    rows = h.flatten(0, 1).numpy()
    spectrum = np.linalg.svd(rows, compute_uv=False) ** 2
    assert found["dependence"] == pytest.approx(spectrum[-1] / spectrum[0], rel=1e-10)
    smallest = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[0]
    assert found["covariance_tail"] == pytest.approx(smallest, rel=1e-10)


def test_the_tail_is_the_mean_of_the_smallest_tenth_of_the_covariance():
    rows = normal(300, 1, 25)
    smallest = np.linalg.eigvalsh(np.cov(rows[:, 0].numpy().T, bias=True))[:2]
    found = values(dependence_readings("act", rows))
    assert found["covariance_tail"] == pytest.approx(smallest.mean(), rel=1e-10)


def test_a_dead_unit_and_a_sum_of_others_are_dependent():
    h = normal(50, 1, 4)
    assert values(dependence_readings("act", h))["dependence"] > 0.1
    dead = h.clone()
    dead[..., 2] = 0
    assert values(dependence_readings("act", dead))["dependence"] == 0
    dead[..., 2] = h[..., 0] - 3 * h[..., 1]
    assert values(dependence_readings("act", dead))["dependence"] == 0
    assert values(dependence_readings("act", 0 * h))["dependence"] == 0


def test_with_fewer_activations_than_units_or_too_many_units_nothing_is_said(monkeypatch):
    assert not list(dependence_readings("act", normal(3, 1, 4)))
    monkeypatch.setattr(unit_redundancy, "UNITS", 3)
    assert not list(dependence_readings("act", normal(30, 1, 4)))


def test_of_many_activations_some_are_taken_at_even_distances(monkeypatch):
    monkeypatch.setattr(unit_redundancy, "ROWS", 20)
    h = normal(50, 1, 2)
    (ratio, _) = dependence_readings("act", h)
    assert ratio.n == 17  # every third
    spectrum = np.linalg.eigvalsh((h[::3, 0].T @ h[::3, 0]).numpy())
    assert ratio.value == pytest.approx(spectrum[0] / spectrum[-1], rel=1e-12)
