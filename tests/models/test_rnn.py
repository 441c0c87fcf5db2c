from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normlens.data.digits import digits
from normlens.models.recurrence import Reading
from normlens.models.rnn import RNN
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.weighted.recurrent_batch_norm import BatchNormLSTM

TOLERANCE = 1e3 * torch.finfo(torch.float64).eps
SHAPE = (2, 3, 4)


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sequences(x: torch.Tensor, reading: Reading) -> torch.Tensor:
    """Rows with their channels, or pixels, by a permutation of axes."""
    return x.permute(0, 2, 1, 3).flatten(2) if reading == "rows" else x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("reading", ["rows", "pixels"])
def test_without_norm_the_network_is_torchs_lstm_with_a_linear_head_on_its_last_state(reading: Reading) -> None:
    model = RNN(SHAPE, 3, norm=None, reading=reading, units=4).double()
    state = model.state_dict()
    state["input.bias"].copy_(torch.linspace(-1, 1, 16))
    x = sequences(images(), reading)
    theirs = nn.LSTM(x.shape[2], 4, batch_first=True, dtype=torch.float64)
    forget = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64).repeat_interleave(4)
    weights = {"weight_ih_l0": state["input.weight"], "weight_hh_l0": state["lstm.weight_hh"]}
    theirs.load_state_dict({**weights, "bias_ih_l0": state["input.bias"], "bias_hh_l0": forget})
    expected = theirs(x)[0][:, -1] @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(model(images()), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("reading", ["rows", "pixels"])
def test_with_recurrent_batch_norm_it_is_the_normalized_memory_that_begins_with_the_same_weights(
    reading: Reading,
) -> None:
    model, plain = (RNN(SHAPE, 3, norm=norm, reading=reading, units=4) for norm in ("recurrent_batch_norm", None))
    own, shared = dict(model.named_parameters()), dict(plain.named_parameters())
    for name, other in (("weight_ih", "input.weight"), ("weight_hh", "lstm.weight_hh")):
        assert torch.equal(own[f"lstm.{name}"], shared[other])
    assert torch.equal(own["head.weight"], shared["head.weight"])
    model.double().eval()
    assert isinstance(model.lstm, BatchNormLSTM)
    assert model.lstm.h0_noise == (0.1 if reading == "pixels" else 0.0)
    x = sequences(images(), reading)
    assert model.lstm.max_length == x.shape[1]
    expected = model.head(model.lstm(x.transpose(0, 1))[0][-1])
    torch.testing.assert_close(model(images()), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_class_of_recurrent_batch_norm_means_the_same_as_its_name() -> None:
    by_name, by_class = (RNN(SHAPE, 3, norm=norm, seed=2) for norm in ("recurrent_batch_norm", BatchNormLSTM))
    assert by_name.state_dict().keys() == by_class.state_dict().keys()
    for a, b in zip(by_name.state_dict().values(), by_class.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("placement", "names", "width"),
    [
        ("pre-activation", ["input", "norm", "lstm", "head"], 16),
        ("post-activation", ["input", "lstm", "norm", "head"], 4),
    ],
)
def test_the_norm_stands_before_the_gates_or_behind_them(placement: Any, names: list[str], width: int) -> None:
    model = RNN(SHAPE, 3, placement=placement, units=4)
    assert [name for name, _ in model.named_children()] == names
    layer = model.get_submodule("norm.layer")
    assert isinstance(layer, BatchNorm)
    assert layer.num_features == width


def test_layer_norm_before_the_gates_is_that_of_each_step_by_itself() -> None:
    model = RNN(SHAPE, 3, norm="layer_norm", units=4).double()
    state, x = model.state_dict(), sequences(images(), "rows")
    gates = nn.functional.layer_norm(x @ state["input.weight"].T, (16,))
    expected = model.head(model.get_submodule("lstm")(gates)[:, -1])
    torch.testing.assert_close(model(images()), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_recurrent_batch_norm_leaves_the_global_random_states_alone(global_random_states: Callable[[], str]) -> None:
    before = global_random_states()
    RNN(SHAPE, 3, norm="recurrent_batch_norm").double()(images())
    assert global_random_states() == before


def test_recurrent_batch_norm_behind_the_gates_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stands inside the recurrence.* got placement 'post-activation': use 'pre-"):
        RNN(SHAPE, 3, norm="recurrent_batch_norm", placement="post-activation")


def test_an_unknown_reading_and_units_that_are_not_positive_are_refused() -> None:
    reading: Any = "columns"
    with pytest.raises(ValueError, match="reading must be 'rows'"):
        RNN(SHAPE, 3, reading=reading)
    with pytest.raises(ValueError, match=r"positive numbers, got \(0,\)"):
        RNN(SHAPE, 3, units=0)


def accuracy(norm: str | None) -> float:
    """Accuracy on the test digits, read row by row, after 150 steps of Adam."""
    data = digits()
    (x, y), test = data.train, data.test
    model = RNN(data.shape, 10, norm=norm, units=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(0)
    for _ in range(150):
        chosen = torch.randint(len(x), (64,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return float((model.eval()(test[0]).argmax(1) == test[1]).float().mean())


@pytest.mark.parametrize("norm", [None, "recurrent_batch_norm", "sequence_batch_norm", "layer_norm"])
def test_digits_are_learned_row_by_row(norm: str | None) -> None:
    assert accuracy(norm) > 0.9
