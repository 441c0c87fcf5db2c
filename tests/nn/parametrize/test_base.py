"""Filters are what stands at one index of a dimension; weights without filters are refused by what must hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.parametrize.base import FanInError, Reparametrization, lengths
from normlens.nn.parametrize.centered_weight_norm import CenteredWeightNorm
from normlens.nn.parametrize.unit_norm import UnitNorm
from normlens.nn.parametrize.weight_norm import WeightNorm
from normlens.nn.parametrize.weight_standardization import WeightStandardization


@pytest.mark.parametrize(("dim", "count", "dims"), [(0, 12, (1, 2)), (1, 8, (0, 2)), (-1, 6, (0, 1)), (-3, 12, (1, 2))])
def test_a_filter_is_all_that_stands_at_one_index_of_its_dimension(dim, count, dims):
    weight, kind = torch.zeros(2, 3, 4), Reparametrization(dim)
    assert kind.fan_in(weight) == count
    assert kind.fan_in_dims(weight) == dims


def test_lengths_are_euclidean_and_keep_their_dimensions(draw):
    weight = draw(3, 4, 2)
    want = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    assert_close(lengths(weight, (1, 2)), want, rtol=1e-15, atol=0)
    assert lengths(torch.full((1, 4), 300.0, dtype=torch.float16), (1,)).item() == 600


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dimension_the_weight_does_not_have_is_refused(dim):
    with pytest.raises(ValueError, match=rf"UnitNorm needs .* dim={dim} among them; got shape \(3, 4\)"):
        UnitNorm(dim).register(nn.Linear(4, 3, device="meta"), "weight")


def test_a_vector_has_no_filters():
    with pytest.raises(ValueError, match=r"two or more dimensions.*got shape \(3,\); biases"):
        UnitNorm().register(nn.Linear(4, 3, device="meta"), "bias")


def test_a_negative_eps_is_refused():
    with pytest.raises(ValueError, match=r"CenteredWeightNorm needs eps of at least 0; got -0.5; leave it out"):
        CenteredWeightNorm(eps=-0.5)
    with pytest.raises(ValueError, match="WeightStandardization needs eps of at least 0; got nan"):
        WeightStandardization(eps=float("nan"))


def test_a_lazy_layer_is_to_be_called_first():
    with pytest.raises(ValueError, match="needs a tensor 'weight' with values; got UninitializedParameter in LazyLin"):
        UnitNorm().register(nn.LazyLinear(3, device="meta"), "weight")


def test_too_few_entries_are_their_own_kind_of_value_error():
    with pytest.raises(FanInError, match=r"filters of 3 entries or more; got shape \(5, 2\).*have 2; leave this layer"):
        UnitNorm().register(nn.Linear(2, 5, device="meta"), "weight", least_fan_in=3)
    assert issubclass(FanInError, ValueError)


def test_directions_are_checked_but_where_there_are_no_numbers():
    layer = WeightNorm().register(nn.Linear(4, 3, device="meta"), "weight")
    assert layer.weight.is_meta
    assert set(layer.state_dict()) == {"bias", *(f"parametrizations.weight.original{i}" for i in (0, 1))}
    with pytest.raises(ValueError, match="got 2 that do not, the first at index 1 of dim 0; draw the weight anew"):
        layer.to_empty(device="cpu").weight = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
