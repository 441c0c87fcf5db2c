from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from normlens.curvature.hessian import hessian
from normlens.risk import EmpiricalRisk
from support.networks import NETWORKS, batch, mlp

cross_entropy = nn.functional.cross_entropy


def test_a_model_that_draws_its_own_random_numbers_is_caught():
    hidden = torch.Generator().manual_seed(0)  # one that a module holds would be put back after every evaluation

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x + torch.randn(x.shape, generator=hidden).to(x))

        def __deepcopy__(self, memo):
            return Noisy()

    with pytest.warns(RuntimeWarning, match="not a deterministic function of its parameters"):
        check = hessian(EmpiricalRisk(Noisy(), cross_entropy, batch())).check
    assert check.passed is False


def test_where_the_model_cannot_be_copied_only_the_symmetry_is_known():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x)

        def __deepcopy__(self, memo):
            raise RuntimeError("one of a kind")

    check = hessian(EmpiricalRisk(Single(), cross_entropy, batch())).check
    assert check.passed
    assert math.isnan(check.difference)
    assert check.asymmetry <= 1e-6


def test_it_can_be_left_out_and_says_so():
    skipped = hessian(EmpiricalRisk(mlp(), cross_entropy, batch()), check=False).check
    assert skipped.passed is None
    assert skipped.message == "not checked"


def test_that_autograd_does_not_see_the_vectors_of_spectral_norm_move_is_found():
    """Its gradient takes the singular vectors as constants, which is right once; its derivative is not the Hessian."""
    model = NETWORKS["spectral_norm"]().train()
    risk = EmpiricalRisk(model, cross_entropy, batch())
    with pytest.warns(RuntimeWarning, match="spectral_norm in train mode"):
        assert hessian(risk).check.difference > 0.01
    assert hessian(EmpiricalRisk(model, cross_entropy, batch(), mode="eval")).check.passed
