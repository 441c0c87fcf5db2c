"""I(X;Y) = I(A;B) + I(A;Y|B=c) + I(X;B|A=c) + I(X;Y|A=B=c), each term at its samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from normlens.information.mutual_information.chain_rule import Terms, chain_terms
from normlens.information.mutual_information.ksg import ksg
from normlens.information.mutual_information.samples import CONTINUOUS

N = 1000


def normals(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(N)
    return x, 0.8 * x + 0.6 * generator.standard_normal(N)


def everywhere(label: int) -> np.ndarray:
    return np.full(N, label)


def test_of_atoms_alone_it_is_the_plug_in_estimate_of_their_table():
    generator = np.random.default_rng(0)
    a = generator.integers(0, 3, N)
    b = np.where(generator.random(N) < 0.5, a, generator.integers(0, 3, N))
    terms = chain_terms(a.astype(float), b.astype(float), a + CONTINUOUS + 1, b + CONTINUOUS + 1, k=3, seed=0)
    assert terms.pointwise.mean() == pytest.approx(mutual_info_score(a, b), rel=1e-12)
    assert terms.degrees == 4
    assert terms.trusted


def test_of_continuous_values_alone_it_is_that_of_neighbors():
    x, y = normals()
    terms = chain_terms(x, y, everywhere(CONTINUOUS), everywhere(CONTINUOUS), k=3, seed=0)
    assert terms.estimate(N).value == pytest.approx(-0.5 * np.log(1 - 0.64), abs=0.06)
    assert terms.estimate(N).value == pytest.approx(
        ksg(torch.from_numpy(x), torch.from_numpy(y), k=3, seed=0).value, abs=1e-3
    )
    assert terms.correction == 0


def test_a_shared_gate_adds_its_entropy_to_the_share_of_what_passes():
    """X and Y are 0 together in half of the samples: I = ln 2 + I(values) / 2."""
    x, y = normals()
    closed = np.arange(N) % 2 == 0
    labels = np.where(closed, CONTINUOUS + 1, CONTINUOUS)
    terms = chain_terms(np.where(closed, 0, x), np.where(closed, 0, y), labels, labels, k=3, seed=0)
    assert terms.pointwise[closed] == pytest.approx(np.log(2), rel=1e-12)
    among = chain_terms(*(v[~closed] for v in (x, y, everywhere(CONTINUOUS), everywhere(CONTINUOUS))), k=3, seed=0)
    assert terms.pointwise[~closed] - np.log(2) == pytest.approx(among.pointwise, abs=1e-12)


def test_samples_that_tell_nothing_dilute_the_estimate_and_its_correction():
    terms = Terms(np.array([1.0, 3.0]), correction=-0.5, degrees=1, trusted=True)
    assert terms.estimate(2).value == 1.5
    diluted = terms.estimate(8)
    assert (diluted.value, diluted.cost) == (1.5 / 4, 8)


def test_an_atom_that_was_not_named_is_named_in_the_error():
    x, y = normals()
    x[: N // 2] = 0.25
    with pytest.raises(ValueError, match=r"0.25 occurs 500 times; name it among the atoms"):
        chain_terms(x, y, everywhere(CONTINUOUS), everywhere(CONTINUOUS), k=3, seed=0)
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        chain_terms(x, y, everywhere(CONTINUOUS), everywhere(CONTINUOUS), k=0, seed=0)
