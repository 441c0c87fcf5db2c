from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from normlens import catalog
from normlens.models.normalization import make_norm


def test_none_makes_no_layer() -> None:
    assert make_norm(None, 4) is None


def test_a_class_and_a_function_are_called_with_the_number_of_features() -> None:
    for norm in (nn.BatchNorm2d, lambda features: nn.BatchNorm2d(features)):
        layer = make_norm(norm, 4)
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.num_features == 4


@pytest.mark.parametrize("name", catalog.names("normlens.nn"))
def test_a_name_makes_the_layer_of_normlens_nn(name: str) -> None:
    assert type(make_norm(name, 16)) is catalog.load("normlens.nn", name)


def test_an_unknown_name_is_refused_by_the_catalog() -> None:
    with pytest.raises(catalog.UnknownNameError, match="unknown name 'batch_nrom' in nn: "):
        make_norm("batch_nrom", 4)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), 3, ["batch_norm"]])
def test_what_makes_no_layer_of_its_own_for_each_place_is_refused(norm: Any) -> None:
    with pytest.raises(
        TypeError, match=r"norm must be a name .*, or None, got .*: every place .* pass what makes them"
    ):
        make_norm(norm, 4)


def test_a_function_that_returns_no_layer_is_refused() -> None:
    function: Any = lambda features: nn.BatchNorm2d  # noqa: E731
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, got .*: return the layer itself"):
        make_norm(function, 4)
