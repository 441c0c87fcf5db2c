"""The operator carries how its products are formed, in which mode, and how far they may be trusted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.curvature.hessian_operator import HessianOperator
from normlens.curvature.product import HessianProduct, RetainedGraph
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian, relative_error, vector

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(12) % 2


def risk(data: object, mode: str | None = None) -> EmpiricalRisk:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for seed, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return EmpiricalRisk(model, nn.functional.cross_entropy, data, mode=mode)


class KnownTo(RetainedGraph):
    """Says that its products are known to a thousandth of the batch's samples."""

    @property
    def error(self) -> float:
        return len(self.batch[0]) * 1e-3


def test_batches_add_up_by_their_numbers_of_samples():
    cut = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    operator = HessianOperator(risk(cut), product=RetainedGraph, check=False)
    expected = dense_hessian(operator._risk.model, nn.functional.cross_entropy, X, Y)
    v = vector(len(expected))
    assert relative_error(operator @ v, expected @ v) <= 1e-13


def test_its_error_is_that_of_its_worst_batch_and_zero_for_derivatives():
    cut = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    assert HessianOperator(risk(cut), product=KnownTo, check=False).error == pytest.approx(9e-3)
    assert HessianOperator(risk(cut), product=RetainedGraph, check=False).error == 0


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_it_says_its_mode_its_product_and_why(mode):
    operator = HessianOperator(risk((X, Y), mode), product=RetainedGraph, check=False)
    assert (operator.mode, operator.product, operator.reason) == (mode, RetainedGraph, "asked for")
    assert operator.check.passed is None
    assert HessianOperator(risk((X, Y)), product=RetainedGraph, check=True).check.passed


class Doubled(HessianProduct):
    """Not a Hessian of anything: what it returns must reach the caller as it is."""

    def __call__(self, v: Tensor) -> Tensor:
        return 2 * v


def test_products_are_what_the_product_says():
    operator = HessianOperator(risk((X, Y)), product=Doubled, check=False)
    v = vector(operator.shape[0])
    assert torch.equal(operator @ v, 2 * v)
