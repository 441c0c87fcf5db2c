"""What every reparametrization of ``normlens.nn.parametrize`` keeps, found by walking the package.

It is a function ``f(module, name="weight", dim=..., ...)`` named as its file, with a default for everything but the
module. ``True`` for every setting that is off, and every choice of a ``Literal``, is tried as well. Layers are in eval
mode, where a weight is the same at every use. A new file joins by being there; no exceptions by name.
"""

from __future__ import annotations

import copy
import inspect
import io
import re
import subprocess
import sys
import typing

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

import normlens.nn.parametrize as package
from normlens import catalog

PACKAGE = "normlens.nn.parametrize"
NAMES = catalog.names(PACKAGE)
LAYERS = {
    "linear": lambda: nn.Linear(5, 3, device="meta"),
    "conv": lambda: nn.Conv2d(4, 6, (2, 3), groups=2, device="meta"),
}
every_name = pytest.mark.parametrize("name", NAMES)
every_layer = pytest.mark.parametrize("kind", LAYERS)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def choices():
    """Each function by its defaults, and with each other choice of its settings."""
    for name in NAMES:
        function = catalog.load(PACKAGE, name)
        yield name, {}
        hints = typing.get_type_hints(function)
        for setting, parameter in inspect.signature(function).parameters.items():
            if parameter.default is False:
                yield name, {setting: True}
            for value in typing.get_args(hints[setting]) if typing.get_origin(hints[setting]) is typing.Literal else ():
                yield name, {setting: value}


every_choice = pytest.mark.parametrize(
    "choice", list(choices()), ids=lambda c: " ".join([c[0], *map(str, c[1].values())])
)


def plain(draw, kind, dtype=torch.float64):
    layer = LAYERS[kind]().to_empty(device="cpu").to(dtype)
    for parameter in layer.parameters():
        parameter.data = draw(*parameter.shape, dtype=dtype)
    return layer.eval()


def build(draw, choice, kind="linear", dtype=torch.float64):
    name, settings = choice
    return catalog.load(PACKAGE, name)(plain(draw, kind, dtype), **settings)


def example(draw, kind, dtype=torch.float64):
    return draw(2, 5, dtype=dtype) if kind == "linear" else draw(2, 4, 4, 5, dtype=dtype)


@every_name
def test_the_index_hands_on_the_function_and_all_but_the_module_has_a_default(name):
    function = catalog.load(PACKAGE, name)
    assert getattr(package, name) is function
    module, *others = inspect.signature(function).parameters.values()
    assert module.name == "module"
    assert others[0].name == "name"
    assert "dim" in {p.name for p in others}
    assert all(p.default is not p.empty for p in others)


@every_name
def test_the_docstring_gives_formula_shapes_validity_and_source(name):
    doc = inspect.getdoc(catalog.load(PACKAGE, name))
    assert re.search(r"``[^`]+ = [^`]+``", doc)
    for part in ("Shapes:", "Valid ", "Source:", "Args:", "Raises:"):
        assert part in doc, part


@every_choice
@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_are_kept_and_the_module_is_returned(draw, choice, kind, dtype):
    layer = plain(draw, kind, dtype)
    shape, name, settings = layer.weight.shape, *choice
    assert catalog.load(PACKAGE, name)(layer, **settings) is layer
    assert layer.weight.shape == shape
    assert layer.weight.dtype == dtype
    assert all(p.dtype == dtype for p in layer.parameters())


@every_choice
@every_layer
def test_the_layer_computes_with_the_weight_it_shows(draw, choice, kind):
    layer, twin, x = build(draw, choice, kind), plain(draw, kind), example(draw, kind)
    twin.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    assert torch.equal(layer(x), twin(x))


@every_choice
@every_layer
@pytest.mark.parametrize("spread", [1, 300, 1e-3])  # the squares of the others are beyond float16
def test_half_precision_is_float64_rounded(draw, choice, kind, spread):
    for dtype in (torch.float16, torch.bfloat16):
        layer = build(draw, choice, kind, dtype)
        for parameter in layer.parameters():
            parameter.data *= spread
        want = copy.deepcopy(layer).double().weight
        assert_close(layer.weight.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


@every_choice
@every_layer
def test_first_and_second_derivatives_agree_with_differences(draw, as_function, choice, kind):
    weight, at = as_function(build(draw, choice, kind))
    at = [t.requires_grad_() for t in at]
    assert torch.autograd.gradcheck(weight, at)
    cotangent = draw(*weight(*at).shape).requires_grad_()  # gradgradcheck would draw it from the global random state
    assert torch.autograd.gradgradcheck(weight, at, cotangent, fast_mode=True)


@every_choice
@every_layer
def test_forward_over_reverse_agrees_with_double_backward(
    draw, as_function, double_backward, forward_over_reverse, choice, kind
):
    weight, at = as_function(build(draw, choice, kind))
    readout = draw(*weight(*at).shape)

    def loss(*at):
        return (weight(*at).tanh() * readout).sum()

    at, v = tuple(at), tuple(draw(*t.shape) for t in at)
    for got, want in zip(forward_over_reverse(loss, at, v), double_backward(loss, at, v), strict=True):
        assert_close(got, want, rtol=1e-12, atol=1e-12)


@every_choice
@every_layer
def test_the_state_dict_rebuilds_the_weight_from_a_file_that_holds_no_code(draw, choice, kind):
    layer, fresh, file = build(draw, choice, kind), build(draw, choice, kind), io.BytesIO()
    for parameter in layer.parameters():
        parameter.data += draw(*parameter.shape)
    assert not torch.equal(fresh.weight, layer.weight)
    torch.save(layer.state_dict(), file)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True)
    assert torch.equal(fresh.weight, layer.weight)


@every_choice
def test_a_deep_copy_is_equal_and_independent(draw, choice):
    layer = build(draw, choice)
    twin, before = copy.deepcopy(layer), layer.weight.detach().clone()
    assert torch.equal(twin.weight, before)
    for tensor in twin.state_dict().values():
        tensor += draw(*tensor.shape)
    assert torch.equal(layer.weight, before)
    assert not torch.equal(twin.weight, before)


@every_choice
@every_layer
def test_it_comes_off_and_leaves_the_weight_behind(draw, choice, kind):
    layer = build(draw, choice, kind)
    before = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert torch.equal(layer.weight, before)
    assert isinstance(layer.weight, nn.Parameter)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert type(layer) is type(plain(draw, kind))


@every_choice
def test_every_step_of_an_optimizer_moves_the_weight_and_keeps_its_shape(draw, choice):
    layer, x = build(draw, choice), draw(8, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        layer(x).tanh().square().sum().backward()
        optimizer.step()
        assert not torch.equal(layer.weight, before)


@every_choice
def test_the_global_random_state_is_left_alone(draw, choice):
    before = torch.random.get_rng_state()
    layer = build(draw, choice)
    layer.train()(draw(2, 5))
    assert torch.equal(torch.random.get_rng_state(), before)


@every_name
def test_a_module_without_the_parameter_is_refused(draw, name):
    with pytest.raises(ValueError, match="filter"):
        catalog.load(PACKAGE, name)(plain(draw, "linear"), name="filter")


@every_choice
def test_it_compiles_to_one_graph(draw, choice):
    layer, x = build(draw, choice), draw(4, 5)
    torch._dynamo.reset()
    results = []
    for call in (torch.compile(layer, fullgraph=True, backend="aot_eager"), layer):
        y = call(x)
        results.append([y, *torch.autograd.grad(y.tanh().sum(), list(layer.parameters()))])
    assert_close(*results, rtol=1e-12, atol=1e-12)


@needs_cuda
@every_choice
@every_layer
def test_cuda_agrees_with_the_cpu(draw, choice, kind):
    layer, x = build(draw, choice, kind), example(draw, kind)
    there, results = copy.deepcopy(layer).cuda(), []
    for one, at in ((there, x.cuda()), (layer, x)):
        y = one(at)
        results.append([y.cpu(), *(g.cpu() for g in torch.autograd.grad(y.tanh().sum(), list(one.parameters())))])
    assert_close(*results, rtol=1e-10, atol=1e-10)


def test_the_package_finds_its_functions_and_imports_no_torch_for_it():
    code = f"import sys, {PACKAGE}, normlens.catalog as c; print(c.names('{PACKAGE}'), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"{NAMES} False"
    assert {"centered_weight_norm", "unit_norm", "weight_norm", "weight_standardization"} <= set(NAMES)
