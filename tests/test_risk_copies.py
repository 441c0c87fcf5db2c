"""EmpiricalRisk.head, select, evaluated and double: the same risk on less data, in another mode, or in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.risk import EmpiricalRisk
from support.fingerprint import fingerprint
from support.networks import batch, conv_batch_norm, mlp

x, y = batch(20)


def test_the_head_takes_as_many_batches_as_its_samples_need():
    batches = [(x[:8], y[:8]), (x[8:16], y[8:16]), (x[16:], y[16:])]
    risk = EmpiricalRisk(mlp(), nn.functional.cross_entropy, batches)
    taken = list(risk.head(11).batches())
    assert [len(b[1]) for b in taken] == [8, 3]
    assert torch.equal(torch.cat([b[0] for b in taken]), x[:11])
    assert list(risk.head(99).batches())[-1][0].shape == (4, 12)


def test_the_head_keeps_mode_seed_parameters_and_forward():
    def forward(model, inputs):
        return 2 * model(inputs)

    risk = EmpiricalRisk(mlp(), nn.functional.cross_entropy, (x, y), mode="eval", seed=5, params="0.*", forward=forward)
    expected = nn.functional.cross_entropy(2 * risk.model(x[:6]), y[:6])
    head = risk.head(6)
    assert head.loss().item() == pytest.approx(expected.item(), rel=1e-6)
    assert (head.mode, head.seed, list(head.parameters)) == ("eval", 5, ["0.weight", "0.bias"])


def test_a_wholly_frozen_model_keeps_its_head():
    risk = EmpiricalRisk(mlp().requires_grad_(False), nn.functional.cross_entropy, (x, y))
    assert risk.head(4).parameters == {}


@pytest.mark.parametrize("samples", [None, 5])
def test_the_double_is_a_float64_copy_with_its_loss_and_leaves_the_model_alone(samples):
    model = conv_batch_norm()
    before = fingerprint(model)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    double = EmpiricalRisk(model, weighted, [(x[:8], y[:8]), (x[8:], y[8:])]).double(samples)
    assert double.loss().dtype == torch.float64
    assert sum(len(b[1]) for b in double.batches()) == (samples or 20)
    assert fingerprint(model) == before
    assert weighted.weight.dtype == torch.float32


def test_the_risk_of_other_parameters_has_their_part_of_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, [(torch.randn(5, 3), torch.arange(5) % 2)] * 2)
    part = risk.select("2.*").gradient()
    assert list(part) == ["2.weight", "2.bias"]
    assert all(torch.equal(part[name], risk.gradient()[name]) for name in part)
    with pytest.raises(ValueError, match="selects none of"):
        risk.select("3.*")


def test_samples_are_counted_over_all_batches():
    data = [(torch.zeros(n, 3), torch.zeros(n)) for n in (5, 2, 4)]
    assert EmpiricalRisk(nn.Linear(3, 1), nn.functional.mse_loss, data).samples == 11


@pytest.mark.parametrize("mode", ["train", "eval", None])
def test_evaluated_it_is_as_the_model_in_eval_mode_and_the_risk_itself_stays(mode):
    model, x = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)), torch.arange(12.0).reshape(4, 3)
    risk = EmpiricalRisk(model, lambda outputs, targets: outputs.sum(), x, mode=mode)
    stood = risk.mode
    ((outputs, _),) = risk.evaluated().outputs()
    assert risk.evaluated().mode == "eval"
    assert (risk.mode, model.training) == (stood, True)
    assert torch.equal(outputs, model.eval()(x))
