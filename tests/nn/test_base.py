"""What all layers share: the refusals, the settings in the repr, the forgetting of batches."""

from __future__ import annotations

import pytest
import torch

from normlens.nn.base import Normalization, RunningNormalization


def plain(**settings):
    return Normalization(4, **{"eps": 1e-5, "affine": True, **settings})


def running(**settings):
    return RunningNormalization(
        4, **{"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True, **settings}
    )


def test_parameters_start_at_one_and_zero_and_are_absent_without_affine():
    assert {name: p.tolist() for name, p in plain().named_parameters()} == {"weight": [1.0] * 4, "bias": [0.0] * 4}
    assert [name for name, _ in plain(has_bias=False).named_parameters()] == ["weight"]
    assert list(plain(affine=False).parameters()) == []


def test_buffers_are_named_as_in_torch_and_are_absent_without_tracking():
    assert list(running().state_dict()) == list(torch.nn.BatchNorm1d(4).state_dict())
    assert list(running(track_running_stats=False).buffers()) == []


def test_reset_restores_the_state_of_a_fresh_layer():
    layer = running()
    for tensor in layer.state_dict().values():
        tensor += 3
    layer.reset_parameters()
    for name, tensor in running().state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor), name


def test_a_batch_weighs_its_momentum_or_one_over_the_batches_so_far():
    assert [running(momentum=0.3).count_batch()] == [0.3]
    layer = running(momentum=None)
    assert [layer.count_batch() for _ in range(3)] == [1.0, 1 / 2, 1 / 3]
    assert int(layer.num_batches_tracked) == 3
    assert running(track_running_stats=False).count_batch() == 0.0


def test_the_repr_lists_the_settings_of_the_constructor():
    assert repr(running()) == (
        "RunningNormalization(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    )


@pytest.mark.parametrize("count", [0, -2])
def test_a_layer_without_channels_is_refused(count):
    with pytest.raises(ValueError, match=rf"num_features of at least 1; got {count}; give the number of channels"):
        Normalization(count, eps=1e-5, affine=True)


@pytest.mark.parametrize("eps", [-1e-5, float("nan")])
def test_a_negative_eps_is_refused(eps):
    with pytest.raises(ValueError, match=rf"eps of at least 0; got {eps}; use 0 for exact statistics"):
        plain(eps=eps)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"Normalization\(4\) needs a floating-point input; got torch.int64; .*float"):
        plain().check_input(torch.ones(2, 4, dtype=torch.long))


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 3, 4)])
def test_a_wrong_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"4 channels at dim 1; got \(.*\); move the channels to dim 1 or build"):
        plain().check_input(torch.ones(shape))


def test_space_is_demanded_where_a_layer_needs_it():
    with pytest.raises(ValueError, match=r"at least one spatial dimension.*got \(2, 4\).*use LayerNorm"):
        plain().check_input(torch.ones(2, 4), spatial=True)
    plain().check_input(torch.ones(2, 4, 1), spatial=True)


def test_a_variance_of_one_value_is_refused():
    with pytest.raises(
        ValueError, match=r"more than one value per row to take a variance; got \(1, 4\), 1 per row; do"
    ):
        plain().check_count(1, torch.ones(1, 4), unit="row", advice="do otherwise")
    plain().check_count(2, torch.ones(2, 4), unit="row", advice="do otherwise")
