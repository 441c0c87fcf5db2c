from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normlens.optim.output_metric import empirical_metric, exact_metric, ggn_metric
from support.resuming import make_generator


def outputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=make_generator(3), dtype=torch.float64)


CLASSES = torch.tensor([2, 0, 1, 2])


def test_the_exact_metric_of_a_classifier_is_the_expectation_over_its_own_labels():
    f = outputs(4, 3)
    p = f.softmax(1)
    residuals = p[:, None, :] - torch.eye(3, dtype=torch.float64)  # (sample, label, output)
    expected = torch.einsum("nl,nlc,nld->ncd", p, residuals, residuals) / 4
    torch.testing.assert_close(exact_metric(f, CLASSES, F.cross_entropy), expected, rtol=1e-13, atol=1e-16)


def test_for_canonical_links_the_exact_metric_is_the_hessian():
    """Written by torch.func.hessian, whose blocks between samples are zero."""
    cases = [(F.cross_entropy, outputs(4, 3), CLASSES), (F.mse_loss, outputs(4, 3), outputs(4, 3) + 1)]
    for loss, f, y in cases:
        blocks = torch.func.hessian(lambda g: loss(g, y))(f)  # noqa: B023
        expected = torch.stack([blocks[n, :, n, :] for n in range(4)])
        torch.testing.assert_close(exact_metric(f, y, loss), expected, rtol=1e-12, atol=1e-16)
        torch.testing.assert_close(ggn_metric(f, y, loss), expected, rtol=1e-12, atol=1e-16)


def test_one_number_per_sample_is_a_metric_of_one():
    f, y = outputs(4), (outputs(4) > 0).double()
    p = f.sigmoid()
    found = ggn_metric(f, y, F.binary_cross_entropy_with_logits)
    torch.testing.assert_close(found, (p * (1 - p) / 4).view(4, 1, 1), rtol=1e-12, atol=0)
    assert exact_metric(f, y, F.mse_loss).tolist() == [[[0.5]]] * 4


def test_the_empirical_metric_is_the_residual_at_the_datas_label():
    f = outputs(4, 3)
    r = f.softmax(1) - F.one_hot(CLASSES, 3)
    expected = r[:, :, None] * r[:, None, :] / 4
    torch.testing.assert_close(empirical_metric(f, CLASSES, F.cross_entropy), expected, rtol=1e-13, atol=1e-16)
    assert not torch.allclose(expected, exact_metric(f, CLASSES, F.cross_entropy), rtol=0.1)


def test_a_loss_that_is_linear_in_the_outputs_has_no_curvature():
    assert not ggn_metric(outputs(4, 3), CLASSES, lambda f, _: f.mean()).any()


def test_another_loss_has_no_exact_metric():
    with pytest.raises(ValueError, match="the negative log likelihood that belongs to its distribution, torch's"):
        exact_metric(outputs(4, 3), CLASSES, lambda f, y: 2 * F.cross_entropy(f, y))


def test_other_targets_have_no_exact_metric():
    with pytest.raises(ValueError, match=r"targets like the outputs; got outputs \(4, 3\) and torch.float64 targets"):
        exact_metric(outputs(4, 3), outputs(4, 2), F.mse_loss)


def test_a_loss_that_ignores_the_outputs_is_refused():
    with pytest.raises(ValueError, match="the loss must depend on the outputs; got one that does not"):
        empirical_metric(outputs(4, 3), CLASSES, lambda f, y: y.sum())
