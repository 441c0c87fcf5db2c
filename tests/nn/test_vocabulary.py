"""PyTorch's layers and ours, described in the same words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens import catalog
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.group_norm import GroupNorm
from normlens.nn.vocabulary import channels, concept, is_normalization, settings

THEIRS = {
    "BatchNorm": [nn.BatchNorm1d(6), nn.BatchNorm2d(6), nn.BatchNorm3d(6), nn.SyncBatchNorm(6)],
    "InstanceNorm": [nn.InstanceNorm1d(6), nn.InstanceNorm2d(6), nn.InstanceNorm3d(6)],
    "GroupNorm": [nn.GroupNorm(3, 6)],
    "LayerNorm": [nn.LayerNorm(6), nn.LayerNorm((6, 5, 5))],
    "RMSNorm": [nn.RMSNorm(6), nn.RMSNorm((6, 5))],
}
PAIRS = [pytest.param(layer, name, id=f"{layer}") for name, layers in THEIRS.items() for layer in layers]


@pytest.mark.parametrize(("layer", "name"), PAIRS)
def test_a_layer_of_torch_has_the_concept_and_the_channels_of_ours(layer, name):
    assert is_normalization(layer)
    assert concept(layer) == name
    assert channels(layer) == 6


@pytest.mark.parametrize("name", catalog.names("normlens.nn"))
def test_every_layer_of_ours_is_a_normalization_named_as_itself(name):
    layer = catalog.load("normlens.nn", name)(6)
    assert is_normalization(layer)
    assert concept(layer) == type(layer).__name__
    assert channels(layer) == 6


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(2))], ids=str)
def test_what_only_contains_a_normalization_is_none(module):
    assert not is_normalization(module)


def test_settings_have_our_names_whosever_layer_it_is():
    theirs = settings(nn.GroupNorm(3, 6, eps=1e-3, affine=False), defaults=True)
    assert theirs == {"affine": False, "eps": 1e-3, "groups": 3}
    assert settings(GroupNorm(6, groups=3, eps=1e-3, affine=False), defaults=True) == theirs
    bn = {"affine": True, "eps": 1e-5, "momentum": 0.1, "track_running_stats": True}
    assert settings(nn.BatchNorm1d(6), defaults=True) == bn
    assert settings(BatchNorm(6), defaults=True) == bn | {"process_group": None}
    assert settings(nn.LayerNorm(6, elementwise_affine=False), defaults=True) == {"affine": False, "eps": 1e-5}


def test_settings_at_the_default_of_their_class_are_left_out_on_request():
    assert settings(nn.BatchNorm2d(6), defaults=False) == {"affine": True}
    changed = nn.BatchNorm2d(6, momentum=None, eps=1e-3, track_running_stats=False)
    expected = {"affine": True, "eps": 1e-3, "momentum": None, "track_running_stats": False}
    assert settings(changed, defaults=False) == expected
    assert settings(BatchNorm(6, momentum=0.5), defaults=False) == {"affine": True, "momentum": 0.5}
    assert settings(nn.InstanceNorm1d(6), defaults=False) == {"affine": False}


def test_a_subclass_that_declares_no_settings_states_all_it_has():
    class Own(nn.BatchNorm2d):
        def __init__(self, *args: int) -> None:
            super().__init__(*args)

    assert settings(Own(6), defaults=False) == settings(nn.BatchNorm2d(6), defaults=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_eps_of_an_rms_norm_without_one_is_that_of_the_computation(dtype):
    used = settings(nn.RMSNorm(6, dtype=dtype), defaults=True)["eps"]
    assert used == (2.0**-52 if dtype == torch.float64 else 2.0**-23)
    assert "eps" not in settings(nn.RMSNorm(6), defaults=False)


def test_a_lazy_layer_is_refused_until_it_has_seen_a_batch():
    layer = nn.LazyBatchNorm1d()
    with pytest.raises(ValueError, match=r"known; LazyBatchNorm1d has not seen its first batch: call the model"):
        channels(layer)
    layer(torch.zeros(3, 6))
    assert channels(layer) == 6
