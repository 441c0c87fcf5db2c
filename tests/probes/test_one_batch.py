from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.nn.weighted import NSMLinear, sampling
from normlens.probes.one_batch import at_the_mean, first_batch, outputs_of, training
from normlens.risk import EmpiricalRisk
from support.networks import batch


def risk_of(model: nn.Module, data: object, mode: str | None = None) -> EmpiricalRisk:
    return EmpiricalRisk(model, nn.functional.cross_entropy, data, mode=mode)


def test_data_cut_in_any_way_are_the_same_batch():
    x, y = batch(32)
    cut = [(x[:13], y[:13]), (x[13:26], y[13:26]), (x[26:], y[26:])]
    for samples, kept in ((20, 20), (32, 32), (99, 32)):
        for data in ((x, y), cut):
            (found,) = first_batch(risk_of(nn.Linear(12, 3), data), samples).batches()
            assert torch.equal(found[0], x[:kept])
            assert torch.equal(found[1], y[:kept])


def test_batches_of_mappings_and_numbers_are_joined_too():
    parts = [({"x": torch.full((2, 3), float(i)), "scale": 2.0}, torch.tensor([i, i])) for i in range(3)]
    (joined,) = first_batch(risk_of(nn.Linear(3, 3), parts), 5).batches()
    assert joined[0]["x"][:, 0].tolist() == [0, 0, 1, 1, 2]
    assert joined[0]["scale"] == 2.0
    assert joined[1].tolist() == [0, 0, 1, 1, 2]


def test_the_chosen_modules_alone_run_in_train_mode_and_only_within_the_block():
    model = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).eval()
    risk = risk_of(model, batch(32), "eval")
    before = outputs_of(risk, what="this")
    model[1].train()
    expected = model(batch(32)[0]).detach()
    model.eval()
    model[1].reset_running_stats()
    with training(model, lambda module: isinstance(module, nn.BatchNorm1d)):
        found = outputs_of(risk, what="this")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(outputs_of(risk, what="this"), before)
    assert not model[1].training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model[1].num_batches_tracked == 0


def test_stochastic_layers_return_their_mean_and_the_training_s_generator_stays():
    layer = NSMLinear(12, 3, generator=torch.Generator().manual_seed(1))
    x, mean = batch(8)[0].sign(), layer(batch(8)[0].sign())
    source = torch.Generator().manual_seed(0)
    with sampling(layer, source):
        before = source.get_state()
        with at_the_mean(layer):
            assert torch.equal(layer(x), mean)
        assert torch.equal(source.get_state(), before)
        assert not torch.equal(layer(x), mean)


class Pair(nn.Module):
    def forward(self, x):
        return x, "note"


def test_outputs_that_are_no_table_are_refused():
    with pytest.raises(ValueError, match=r"must return one tensor \(N, C, ...\) for entropies; got tuple; give"):
        outputs_of(risk_of(Pair(), batch(4)), what="entropies")
    with pytest.raises(ValueError, match="got Tensor"):
        outputs_of(risk_of(nn.Flatten(0), batch(4)), what="entropies")
