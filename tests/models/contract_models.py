"""What every model must keep; the models are found by walking normlens.models."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normlens.models as package
from normlens import catalog

MODELS = catalog.names("normlens.models")
QUICK = ("mlp", "cnn")  # every layer in the others too takes most of a minute: CI does it
NORMS = catalog.names("normlens.nn")
PLACEMENTS = ["pre-activation", "post-activation"]
WEIGHTS = (nn.Linear, nn.Conv2d)
SHAPE = (1, 8, 8)

Make = Callable[..., nn.Module]


def one_group(num_features: int) -> nn.Module:
    """A norm that takes (N, C) and (N, C, H, W)."""
    return nn.GroupNorm(1, num_features)


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Make:
    """The class of a model."""
    model: Make = catalog.load("normlens.models", request.param)
    return model


@pytest.fixture
def shallow(make: Make) -> Make:
    """The class of a model, as shallow as it comes: for what is tried under every norm."""
    return partial(make, depth=8) if "depth" in inspect.signature(make).parameters else make


@pytest.fixture
def rectified(make: Make) -> Make:
    """The class of a model whose nonlinearities are ReLUs; one with gates has none that could be captured."""
    if not any(isinstance(module, nn.ReLU) for module in make(SHAPE, 7, norm=None).modules()):
        pytest.skip("it has no ReLU")
    return make


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def executed(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The leaf modules with their names in the order in which a forward pass calls them."""
    calls: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda called, _, __, name=name: calls.append((name, called)))
    model(images(4, *SHAPE))
    return calls


def takes(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a layer accepts inputs of this shape."""
    try:
        layer(images(*shape))
    except ValueError:
        return False
    return True


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear and convolution layers, by name."""
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, WEIGHTS)}


def test_the_walk_finds_the_models_and_no_helper() -> None:
    assert {"cnn", "mlp", "resnet"} <= set(MODELS)
    for name in MODELS:
        assert issubclass(catalog.load("normlens.models", name), nn.Module)


def test_constructors_begin_with_the_same_arguments_and_the_rest_have_defaults(make: Make) -> None:
    shared, rest = {}, []
    for name, parameter in inspect.signature(make).parameters.items():
        if name in ("input_shape", "classes", "norm", "placement", "seed"):
            shared[name] = (parameter.kind.name, parameter.default)
        else:
            rest.append((parameter.kind, parameter.default is parameter.empty))
    nothing = inspect.Parameter.empty
    assert shared == {
        "input_shape": ("POSITIONAL_OR_KEYWORD", nothing),
        "classes": ("POSITIONAL_OR_KEYWORD", nothing),
        "norm": ("KEYWORD_ONLY", "batch_norm"),
        "placement": ("KEYWORD_ONLY", "pre-activation"),
        "seed": ("KEYWORD_ONLY", 0),
    }
    assert set(rest) <= {(inspect.Parameter.KEYWORD_ONLY, False)}


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_outputs_are_one_number_for_each_class(make: Make, shape: tuple[int, ...]) -> None:
    assert make(shape, 7, norm=one_group)(images(2, *shape)).shape == (2, 7)


def test_without_norm_an_output_depends_on_its_own_input_alone(make: Make) -> None:
    model, x = make(SHAPE, 7, norm=None).double(), images(3, *SHAPE, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(model(x), alone, rtol=1e3 * torch.finfo(torch.float64).eps, atol=0)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_norm_follows_a_weight_layer_or_a_relu_as_the_placement_says(rectified: Make, placement: str) -> None:
    calls = [module for _, module in executed(rectified(SHAPE, 7, norm=one_group, placement=placement))]
    previous = [before for before, module in pairwise(calls) if isinstance(module, nn.GroupNorm)]
    assert previous
    assert all(isinstance(module, WEIGHTS if placement == "pre-activation" else nn.ReLU) for module in previous)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_layer_is_called_once_and_in_the_order_of_its_name(make: Make, placement: str) -> None:
    model = make(SHAPE, 7, norm=one_group, placement=placement)
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    assert [name for name, _ in executed(model)] == leaves


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_relu_is_a_module_of_its_own_that_does_not_write_in_place(rectified: Make, placement: str) -> None:
    relus = [module for _, module in executed(rectified(SHAPE, 7, norm=one_group, placement=placement))]
    relus = [module for module in relus if isinstance(module, nn.ReLU)]
    assert set(Counter(map(id, relus)).values()) == {1}
    assert not any(relu.inplace for relu in relus)


def test_the_relus_are_all_that_keeps_the_model_from_being_affine(rectified: Make) -> None:
    # so no ReLU is hidden in a forward method, where its input could not be captured (a maximum is one, too)
    model = rectified(SHAPE, 7, norm=None).double()
    if any(name.endswith("attention") for name, _ in model.named_modules()):
        pytest.skip("attention is a product of its inputs; its own test takes the queries out")
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU | nn.MaxPool2d):
            parent, _, child = name.rpartition(".")
            stand_in = nn.AvgPool2d(2) if isinstance(module, nn.MaxPool2d) else nn.Identity()
            model.get_submodule(parent).add_module(child, stand_in)
    x, y = images(2, 1, *SHAPE, dtype=torch.float64)
    middle, mean = model((x + y) / 2), (model(x) + model(y)) / 2
    scale = 1e3 * torch.finfo(torch.float64).eps * float(mean.detach().abs().max())
    torch.testing.assert_close(middle, mean, rtol=0, atol=scale)


def test_the_seed_decides_every_parameter(make: Make) -> None:
    first, again = (make(SHAPE, 7, norm=one_group, seed=3).state_dict() for _ in range(2))
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    other = weights(make(SHAPE, 7, norm=one_group, seed=4))
    assert [name for name in other if torch.equal(first[f"{name}.weight"], other[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_weight_layers_begin_alike_whatever_the_norm(shallow: Make, placement: str) -> None:
    plain = weights(shallow(SHAPE, 7, norm=None))
    for norm in (one_group, *(NORMS if placement == PLACEMENTS[0] else NORMS[:2])):
        normed = weights(shallow(SHAPE, 7, norm=norm, placement=placement))
        assert {name for name in plain if not torch.equal(plain[name], normed[name])} == set()


@pytest.mark.slow
def test_construction_leaves_the_global_random_states_alone(
    shallow: Make, global_random_states: Callable[[], str]
) -> None:
    before = global_random_states()
    for norm in (None, one_group, *NORMS):
        shallow(SHAPE, 7, norm=norm)
    assert global_random_states() == before


def test_weight_layers_but_the_head_have_a_bias_unless_a_norm_follows_them_directly(make: Make) -> None:
    for norm, placement, biased in (
        (None, "pre-activation", True),
        (one_group, "pre-activation", False),
        (one_group, "post-activation", True),
    ):
        model = make(SHAPE, 7, norm=norm, placement=placement)
        found = {name: module.bias is not None for name, module in model.named_modules() if isinstance(module, WEIGHTS)}
        assert found.pop("head")
        assert set(found.values()) == {biased}
        assert any(isinstance(module, nn.GroupNorm) for module in model.modules()) is (norm is not None)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_parameter_has_an_influence_on_the_loss(make: Make, placement: str) -> None:
    model = make(SHAPE, 7, norm=one_group, placement=placement)
    nn.functional.cross_entropy(model(images(8, *SHAPE)), torch.arange(8) % 7).backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("placement", ["pre-activation", pytest.param("post-activation", marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "make", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS], indirect=True
)
def test_every_layer_of_normlens_nn_that_takes_the_activations_fits_by_its_name(
    shallow: Make, norm: str, placement: str
) -> None:
    layer = catalog.load("normlens.nn", norm)
    model = shallow(SHAPE, 7, norm=norm, placement=placement)
    assert any(type(module) is layer for module in model.modules())
    # 32 samples: a layer that whitens 16 channels needs more of them than that
    activations = (32, 16, 4, 4) if any(isinstance(module, nn.Conv2d) for module in model.modules()) else (32, 16)
    if takes(layer(16), activations):
        assert model(images(32, *SHAPE)).shape == (32, 7)
    else:
        with pytest.raises(ValueError, match="got"):
            model(images(32, *SHAPE))


def test_a_misspelt_norm_is_refused_with_the_nearest_name(make: Make) -> None:
    with pytest.raises(catalog.UnknownNameError, match=r"unknown name 'batch_nrom' in nn: did you mean .*'batch_norm'"):
        make(SHAPE, 7, norm="batch_nrom")


def test_an_unknown_placement_is_refused(make: Make) -> None:
    placement: Any = "before"
    with pytest.raises(ValueError, match=r"placement must be 'pre-activation' .* got 'before': choose one of the two"):
        make(SHAPE, 7, norm=one_group, placement=placement)


def test_no_output_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        make(SHAPE, 0, norm=None)


def test_the_index_names_every_public_module() -> None:
    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    missing = {name for name in files if not name.startswith("_") and name not in package.__all__}
    assert missing == set()


def test_the_index_needs_no_torch() -> None:
    code = "import sys, normlens.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
