from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.nn import BatchNorm
from normlens.optim.channel_units import channel_units, rescale
from normlens.optim.rescaling_graph import Stream
from support.resuming import draw_parameters, make_generator


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=make_generator(4), dtype=torch.float64)


def image_net() -> nn.Sequential:
    image = [nn.Conv2d(2, 4, 3), BatchNorm(4, eps=0.0), nn.ReLU()]
    return draw_parameters(nn.Sequential(*image, nn.Flatten(), BatchNorm(64, eps=0.0), nn.Linear(64, 3)))


def test_any_positive_factors_leave_the_function_where_it_was():
    """Through a flattened image, whose every channel is 16 columns of the linear layer and 16 entries of a norm."""
    model, x = image_net(), numbers(5, 2, 6, 6)
    model(x + 1)
    before = model.eval()(x)
    (unit,) = channel_units(model, None, fold=True)
    with torch.no_grad():
        rescale(unit, numbers(4).exp())
    torch.testing.assert_close(model(x), before, rtol=1e-11, atol=1e-12)


def test_every_tensor_is_told_with_its_factor():
    model = image_net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (unit,) = channel_units(model, None, fold=True)
    with torch.no_grad():
        told = {id(tensor): factor for tensor, factor in rescale(unit, numbers(4).exp())}
    for name, parameter in model.named_parameters():
        factor = told.get(id(parameter), torch.ones(1, dtype=torch.float64))
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-15, atol=0)
    assert len(told) == len(before) - 1  # all but the last bias


def test_norms_are_left_out_where_they_are_not_folded():
    (unit,) = channel_units(image_net(), None, fold=False)
    assert unit.norms == []


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ([Stream(("0",), ("nope",))], "names of modules; got 'nope'"),
        ([Stream(("0",), ("1",))], "plain linear layers or convolutions"),
        ([Stream(("0",), ())], "plain linear layers or convolutions"),
        ([Stream(("0",), ("4",))], r"one number of channels; got \[4\] written and \[8\] read"),
        ([Stream(("0", "2"), ("4",))], r"one number of channels; got \[4, 8\] written"),
        ([Stream(("0",), ("2",)), Stream(("0",), ("2",))], "layers of its own"),
        ([Stream(("0",), ("2",), ("1",))], "batch norms with weight and bias"),
    ],
)
def test_streams_that_make_no_sense_are_refused(streams, message):
    with pytest.raises(ValueError, match=message):
        channel_units(net(), streams, fold=True)


def test_tied_weights_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"weights of one layer each; got \['0.weight', '2.weight'\], which are one"):
        channel_units(model, None, fold=True)
