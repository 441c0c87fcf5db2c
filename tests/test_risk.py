"""The risk is the mean loss of the whole data, its gradient is autograd's, and taking it leaves no trace."""

from __future__ import annotations

import collections
import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from normlens.risk import EmpiricalRisk, eager_module
from support import networks
from support.fingerprint import fingerprint
from support.networks import batch

EXACT = {"rtol": 1e-11, "atol": 1e-13}  # float64, some hundred operations deep


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model in float64, the same at every call."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the legacy weight_norm
        torch.manual_seed(3)
        return build().double()


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    x, y = batch(sum(sizes))
    return list(zip(x.double().split(list(sizes)), y.split(list(sizes)), strict=True))


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.4), nn.Linear(5, 3))


def with_layer(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(wrap(nn.Linear(12, 5)), nn.Tanh(), nn.BatchNorm1d(5), wrap(nn.Linear(5, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **networks.NETWORKS,
    "norm": norm_net,
    "legacy_weight_norm": with_layer(nn.utils.weight_norm),
    "weight_norm": with_layer(nn.utils.parametrizations.weight_norm),
    "legacy_spectral_norm": with_layer(nn.utils.spectral_norm),
    "tied": Tied,
}


@pytest.fixture(params=NETWORKS)
def build(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    return lambda: seeded(NETWORKS[request.param])


def by_autograd(call: Any, x: Tensor, y: Tensor, model: nn.Module | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients as a user takes them; ``model`` where ``call`` is not the module itself."""
    model = call if model is None else model
    model.zero_grad()
    loss = functional.cross_entropy(call(x), y)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("sizes", [(13,), (5, 5, 3), (1, 12), (1,) * 13])
def test_loss_and_gradient_are_those_of_all_data_in_one_batch(build, sizes):
    risk = EmpiricalRisk(build(), functional.cross_entropy, data(*sizes), mode="eval")
    loss, gradient = by_autograd(build().eval(), *data(sum(sizes))[0])
    assert_close(risk.loss(), loss, **EXACT)
    assert_close(risk.gradient(), gradient, **EXACT)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_in_either_mode_one_batch_gives_what_the_model_itself_gives(build, mode):
    """In train mode this holds the spectral norm to the one power iteration that the model would make."""
    model = build().train(mode == "train")
    risk = EmpiricalRisk(build(), functional.cross_entropy, data(12)[0], mode=mode, seed=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        loss, gradient = by_autograd(model, *data(12)[0])
    assert_close(risk.loss(), loss, **EXACT)
    assert_close(risk.gradient(), gradient, **EXACT)


@pytest.mark.parametrize("mode", ["train", "eval", None])
def test_evaluating_leaves_no_trace(build, mode):
    model = build()
    by_autograd(model, *data(8)[0])
    model[1].eval() if isinstance(model, nn.Sequential) else None
    before, weights = fingerprint(model), [vars(module).get("weight") for module in model.modules()]
    risk = EmpiricalRisk(model, functional.cross_entropy, data(5, 4), mode=mode)
    for evaluate in (risk.loss, risk.gradient, lambda: list(risk.outputs())):
        evaluate()
        assert fingerprint(model) == before
        assert all(vars(m).get("weight") is w for m, w in zip(model.modules(), weights, strict=True))


def test_dropout_draws_the_same_masks_at_every_evaluation_whatever_was_drawn_between():
    model = seeded(norm_net)
    risk = EmpiricalRisk(model, functional.cross_entropy, data(8, 8), mode="train")
    with torch.random.fork_rng(devices=[]):
        first, gradient = risk.loss(), risk.gradient()
        torch.manual_seed(99)
        torch.rand(7)
        assert torch.equal(risk.loss(), first)
        assert_close(risk.gradient(), gradient, rtol=0, atol=0)
    other = EmpiricalRisk(model, functional.cross_entropy, data(8, 8), mode="train", seed=1)
    assert not torch.equal(other.loss(), first)


def test_the_gradient_is_the_slope_of_the_loss_with_the_same_masks():
    model = seeded(norm_net)
    model[2] = nn.Tanh()  # smooth: central differences are then good to the cube root of eps squared
    risk = EmpiricalRisk(model, functional.cross_entropy, data(8, 5), mode="train")
    gradient, step, values = risk.gradient(), 6e-6, []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        for name, p in moved.named_parameters():
            p.data += sign * step * gradient[name]
        values.append(EmpiricalRisk(moved, functional.cross_entropy, data(8, 5), mode="train").loss())
    slope = sum(g.square().sum() for g in gradient.values())
    assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-8, atol=0)


def test_tied_weights_are_one_parameter_with_one_gradient():
    risk = EmpiricalRisk(seeded(Tied), functional.cross_entropy, data(7))
    expected = ["first.weight", "first.bias", "second.bias", "head.weight", "head.bias"]
    assert list(risk.gradient()) == list(risk.parameters) == expected


@pytest.mark.parametrize(
    ("params", "chosen"),
    [
        (None, ["0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]),
        ("0.*", ["0.weight", "0.bias"]),
        (["4.bias", "1.*"], ["1.weight", "1.bias", "4.bias"]),
        (("*.bias",), ["0.bias", "1.bias", "4.bias"]),
        (lambda name, p: p.ndim == 2, ["0.weight", "4.weight"]),
    ],
)
def test_params_are_a_glob_names_a_predicate_or_every_trainable_one(params, chosen):
    model = seeded(norm_net)
    model[0].weight.requires_grad_(False)
    gradient = EmpiricalRisk(model, functional.cross_entropy, data(6, 3), params=params, mode="eval").gradient()
    assert list(gradient) == chosen
    everything = by_autograd(seeded(norm_net).eval(), *data(9)[0])[1]
    assert_close(gradient, {name: everything[name] for name in chosen}, **EXACT)


def test_a_parameter_that_the_loss_does_not_use_has_gradient_zero():
    model = nn.Sequential(seeded(norm_net))
    model.spare = nn.Linear(2, 2)
    model.forward = lambda x: model[0](x)
    for params in (None, "spare.*"):
        gradient = EmpiricalRisk(model, functional.cross_entropy, data(6), params=params).gradient()
        assert [g.any().item() for name, g in gradient.items() if "spare" in name] == [False, False]


def test_a_wholly_frozen_model_has_an_empty_gradient():
    assert EmpiricalRisk(seeded(norm_net).requires_grad_(False), functional.cross_entropy, data(6)).gradient() == {}


@pytest.mark.parametrize("params", ["nothing.*", [], ["a", "b"], lambda name, p: False])
def test_params_that_select_nothing_are_refused(params):
    with pytest.raises(ValueError, match=r"params must select at least one parameter; .* selects none of \['0.weight"):
        EmpiricalRisk(seeded(norm_net), functional.cross_entropy, data(4), params=params)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"mode must be 'train', 'eval' or None \(as the model stands\); got 'test'"):
        EmpiricalRisk(seeded(norm_net), functional.cross_entropy, data(4), mode="test")


@pytest.mark.parametrize("empty", [[], iter(()), [(torch.zeros(0, 12).double(), torch.zeros(0).long())]])
def test_data_without_samples_are_refused(empty):
    risk = EmpiricalRisk(seeded(norm_net), functional.cross_entropy, empty, mode="eval")
    with pytest.raises(ValueError, match=r"the data must hold at least one sample; got none \(an exhausted iterator"):
        risk.loss()


def test_the_mode_is_the_one_asked_for_or_how_the_model_stands():
    model = seeded(norm_net)
    asked = EmpiricalRisk(model, functional.cross_entropy, data(4), mode="eval")
    stands = EmpiricalRisk(model, functional.cross_entropy, data(4))
    assert (asked.mode, stands.mode) == ("eval", "train")
    model[1].eval()
    assert (stands.mode, model.eval() and stands.mode) == ("mixed", "eval")


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_block_that_is_computed_again_in_the_backward_pass_is_computed_as_in_the_forward_pass(mode):
    model = seeded(Checkpointed)
    x, y = data(8)[0]
    before = fingerprint(model)
    gradient = EmpiricalRisk(model, functional.cross_entropy, (x, y), mode=mode).gradient()
    assert fingerprint(model) == before
    assert_close(gradient, by_autograd(model.train(mode == "train"), x, y)[1], **EXACT)


def forbidden(graph: object, inputs: object) -> None:
    raise AssertionError("the model was run compiled")


compiled = functools.partial(torch.compile, backend=forbidden)


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend=forbidden)
    return model


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda model: compiled(nn.DataParallel(model)), in_place])
def test_wrappers_are_taken_off_and_stay_as_they_are(wrap):
    model, twin = networks.Whole(seeded(norm_net)), networks.Whole(seeded(norm_net)).eval()
    wrapped = wrap(model)
    in_place_call = model._compiled_call_impl
    risk = EmpiricalRisk(wrapped, functional.cross_entropy, data(5, 4), mode="eval")
    assert risk.model is eager_module(wrapped) is model
    assert_close(risk.gradient(), by_autograd(twin, *data(9)[0])[1], **EXACT)
    assert model._compiled_call_impl is in_place_call


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(a - 2 * b)


Pair = collections.namedtuple("Pair", "inputs targets")
BY_KEY = {
    "forward": lambda model, batch: model(batch["a"], batch["b"]),
    "loss": lambda outputs, batch: functional.cross_entropy(outputs, batch["y"]),
}


@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        (lambda a, b, y: ({"a": a, "b": b}, y), {}),
        (lambda a, b, y: ((a, b), y), {}),
        (lambda a, b, y: Pair((a, b), y), {}),
        (lambda a, b, y: [(a, b), y], {}),
        (lambda a, b, y: {"a": a, "b": b, "y": y}, BY_KEY),
    ],
    ids=["mapping", "tuple", "namedtuple", "list", "dicts"],
)
def test_batches_of_every_form_give_the_loss_and_gradient_of_the_same_data(form, arguments):
    model, rows = seeded(Keyed), [(x, x.flip(1).exp(), y) for x, y in data(5, 3)]
    batches = [form(*row) for row in rows]
    arguments = {"loss": functional.cross_entropy, **arguments}
    a, b, y = (torch.cat(column) for column in zip(*rows, strict=True))
    expected = by_autograd(functools.partial(model, a), b, y, model)[1]
    assert_close(EmpiricalRisk(model, data=batches, **arguments).gradient(), expected, **EXACT)
    one = EmpiricalRisk(model, data=batches[0], **arguments)
    assert_close(one.loss(), functional.cross_entropy(model(*rows[0][:2]), rows[0][2]).detach(), **EXACT)


def test_a_bare_tensor_is_one_batch_and_its_own_target():
    model, x = seeded(lambda: nn.Linear(12, 12)), data(5)[0][0]
    risk = EmpiricalRisk(model, functional.mse_loss, x)
    assert_close(risk.loss(), functional.mse_loss(model(x), x).detach(), **EXACT)


def test_outputs_come_batch_by_batch_with_their_targets_and_without_a_graph():
    model, batches = seeded(norm_net).eval(), data(5, 2)
    found = list(EmpiricalRisk(model, functional.cross_entropy, batches).outputs())
    for (outputs, targets), (x, y) in zip(found, batches, strict=True):
        assert not outputs.requires_grad
        assert_close(outputs, model(x).detach(), **EXACT)
        assert torch.equal(targets, y)
