"""What every probe must keep; the probes are found by walking normlens.probes."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens import catalog
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations, measure
from normlens.run.probe import Previous, Probe, Step, probe_name
from normlens.run.reading import Measurement, Reading
from support.fingerprint import fingerprint
from support.networks import NETWORKS, batch

PROBES = catalog.names("normlens.probes")
QUICK = ("mlp", "conv_batch_norm")  # each probe on the other four too takes minutes: CI does it


@pytest.fixture(params=PROBES)
def kind(request: pytest.FixtureRequest) -> Callable[[], Probe]:
    """The class of a probe."""
    found: Callable[[], Probe] = catalog.load("normlens.probes", request.param)
    return found


@pytest.fixture(params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return network(request.param)


def network(name: str) -> nn.Module:
    """A network with weights of its own seed, and gradients and used running statistics as in mid-training."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        model = NETWORKS[name]()
        nn.functional.cross_entropy(model(batch(16, seed=9)[0]), batch(16, seed=9)[1]).backward()
    return model


def step_of(model: nn.Module, data: Any = None, mode: str | None = None) -> Step:
    """A moment that knows all that a step can know."""
    data = batch(32) if data is None else data
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, data, mode=mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update = {name: torch.full_like(p, 0.01) for name, p in model.named_parameters()}
    return Step(7, risk, Activations(risk), Previous(), optimizer, torch.Generator(), batch(8, seed=2), 0.5, update)


def ask(probe: Probe, step: Step, previous: Previous | None = None) -> Measurement:
    result, error = measure(
        step.risk.model, probe, probe_name(probe), step, previous or Previous(), elapsed=1.0, seed=0
    )
    assert (result.status, error) == ("ok", None), result.message
    assert result.readings, "a probe that has nothing to say must say why, by raising"
    return result


def refuses(probe: Probe, step: Step, why: str) -> bool:
    """Whether the probe refuses to measure, in words that name the cause."""
    result, error = measure(step.risk.model, probe, probe_name(probe), step, Previous(), elapsed=1.0, seed=0)
    return isinstance(error, ValueError) and bool(re.search(why, result.message))


def ask_twice(probe: Probe, model: nn.Module, data: Any = None, mode: str | None = None) -> list[Measurement]:
    """A first measurement, and a second one that knows the first."""
    first = ask(probe, step_of(model, data, mode))
    known = {(r.layer, r.name): r for r in first.readings}
    return [first, ask(probe, step_of(model, data, mode), Previous(known, known, lambda step: known))]


def exact(reading: Reading) -> tuple[Any, ...]:
    """A reading to the bit, nan included."""
    numbers = (reading.array.tobytes(), np.float64(reading.error).tobytes())
    return (reading.name, reading.layer, reading.dims, reading.units, reading.n, reading.array.shape, *numbers)


def test_the_walk_finds_the_probes_and_no_helper():
    assert {"activation_drift", "elimination", "training_curve"} <= set(PROBES)
    assert "module_kinds" not in PROBES


def test_a_probe_is_a_frozen_dataclass_with_a_default_for_every_field(kind):
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind() == kind()
    assert isinstance(kind(), Probe)
    for field in dataclasses.fields(kind()):
        with pytest.raises(dataclasses.FrozenInstanceError, match=field.name):
            setattr(kind(), field.name, None)


def test_a_probe_is_named_after_its_file(kind):
    assert probe_name(kind()) == kind.__module__.rpartition(".")[2]


def test_a_probe_s_docstring_has_a_formula_or_a_source_and_names_its_settings(kind):
    text = kind.__doc__ or ""
    assert text.partition("\n")[0].endswith((".", "?"))
    assert ":math:" in text or ".. math::" in text or re.search(r"Source:|arXiv:\d", text)
    for field in dataclasses.fields(kind):
        assert re.search(rf"^\s+{field.name}: ", text, re.MULTILINE), f"{field.name} is not documented"


def test_a_probe_says_beforehand_what_it_costs(kind, model):
    assert 0 < kind().cost(step_of(model)) < math.inf


@pytest.mark.parametrize("mode", ["train", "eval", None])
def test_a_probe_answers_on_every_network_and_leaves_no_trace(kind, model, mode):
    model[0].eval() if isinstance(model, nn.Sequential) else None  # so that None is a mixed mode
    before = fingerprint(model)
    ask_twice(kind(), model, mode=mode)
    assert fingerprint(model) == before


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_same_step_gives_the_same_readings_to_the_bit(kind, model, mode):
    once = ask_twice(kind(), model, mode=mode)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        again = ask_twice(kind(), model, mode=mode)
    for first, second in zip(once, again, strict=True):
        assert list(map(exact, first.readings)) == list(map(exact, second.readings))


def test_every_reading_of_a_probe_has_a_layer_and_name_of_its_own_and_a_layer_of_the_model(kind, model):
    modules = dict(model.named_modules())
    for measurement in ask_twice(kind(), model):
        names = [(reading.layer, reading.name) for reading in measurement.readings]
        assert len(set(names)) == len(names)
        assert {layer.partition("@")[0] for layer, _ in names} <= set(modules)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_weights_that_are_nan_are_recorded_and_not_hidden(kind, mode):
    for name in ("mlp", "conv_batch_norm", "lstm"):
        model = network(name)
        healthy = ask_twice(kind(), model, mode=mode)[1]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        if refuses(kind(), step_of(model, mode=mode), "must be finite"):
            continue  # a curvature where there is none would be a made-up number
        sick = ask_twice(kind(), model, mode=mode)[1]
        assert {(r.layer, r.name) for r in sick.readings} == {(r.layer, r.name) for r in healthy.readings}
        assert any(np.isnan(r.array).all() for r in sick.readings), name
        assert not [r for r in sick.readings if r.name in ("dead", "constant_channels") and r.value]


def test_a_wholly_frozen_model_can_be_measured(kind, model):
    before = fingerprint(model.requires_grad_(False))
    if not refuses(kind(), step_of(model), "at least one trainable parameter"):
        ask_twice(kind(), model)
    assert fingerprint(model) == before


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_single_sample_can_be_measured(kind, model, mode):
    for measurement in ask_twice(kind(), model, batch(1), mode):
        assert all(not math.isinf(reading.error) for reading in measurement.readings)


def test_in_eval_mode_the_readings_do_not_depend_on_how_the_data_are_cut(kind, model):
    x, y = batch(32)
    model.eval()
    whole = ask_twice(kind(), model, (x, y), "eval")
    cut = ask_twice(kind(), model, list(zip(x.split([13, 13, 6]), y.split([13, 13, 6]), strict=True)), "eval")
    for one, other in zip(whole, cut, strict=True):
        # What is not stored is no result: an eigenvector may come out with either sign.
        stored = ([r for r in measurement.readings if r.stored] for measurement in (one, other))
        for a, b in zip(*stored, strict=True):
            assert (a.layer, a.name, a.n) == (b.layer, b.name, b.n)
            # Another blocking of float32 sums: some hundred of them, seen through differences of order one.
            np.testing.assert_allclose(a.array, b.array, rtol=1e-4, atol=1e-5, err_msg=f"{a.layer} {a.name}")


def test_a_probe_works_where_the_user_has_switched_gradients_off(kind):
    model = network("mlp")
    expected = ask(kind(), step_of(model))
    with torch.no_grad():
        found = ask(kind(), step_of(model))
    assert list(map(exact, found.readings)) == list(map(exact, expected.readings))


class Shared(nn.Module):
    """Calls one linear layer and one activation twice, and returns its output in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act, self.head = nn.Linear(12, 12), nn.ReLU(inplace=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.head(self.act(self.linear(self.act(self.linear(x))))), "note"


def test_a_module_that_is_called_twice_gives_two_layers(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Shared()
    risk = EmpiricalRisk(model, lambda outputs, y: nn.functional.cross_entropy(outputs[0], y), batch(32))
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    if refuses(kind(), step, "must return one tensor|needs the optimizer"):
        return
    result = ask(kind(), step)
    layers = {reading.layer for reading in result.readings}
    inputs = {"linear", "linear@2", "head"}
    assert layers in ({""}, {"act", "act@2"}, inputs, inputs - {"linear"}, {"linear", "head"})  # the last: of weights
