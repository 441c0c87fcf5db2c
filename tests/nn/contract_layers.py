"""What every layer of ``normlens.nn`` keeps, found by walking the package: a new file joins by being there.

A layer is called on deep copies, so that one with buffers or a seeded generator answers alike every time; one that
draws must draw in one dtype, so that float32 and float64 see the same noise. A shape it cannot mean it refuses by a
ValueError that says its name and the shape that came. Everything else holds for all: no exceptions by name.
Where it may be taken (compiled, on a GPU, to a batch of one) is in ``contract_layer_portability.py``.
"""

from __future__ import annotations

import copy
import inspect
import io
import re
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

import normlens.nn
from normlens import catalog
from support.layers import (
    CHANNELS,
    NAMES,
    SHAPES,
    both_modes,
    build,
    evaluate,
    every_layer,
    every_name,
    lived_in,
    seeded,
    settings_of,
    supports,
)


def smallest_inputs(layer):
    """The shapes on which derivatives are checked: features and a line, as far as supported."""
    return [shape for shape in SHAPES[:2] if supports(layer, shape)]


def split(layer, at):
    """Turn the tuple (x, *parameters) back into what ``evaluate`` takes."""
    return at[0], dict(zip(dict(layer.named_parameters()), at[1:], strict=True))


def scalar(layer, readout):
    """A loss with curvature of its own, of (x, *parameters)."""
    return lambda *at: (torch.tanh(evaluate(layer, *split(layer, at))) * readout).sum()


@every_name
def test_the_index_hands_on_the_class_and_the_constructor_names_all_it_takes(name):
    cls = catalog.load("normlens.nn", name)
    assert getattr(normlens.nn, cls.__name__) is cls
    first, *others = inspect.signature(cls).parameters.values()
    assert first.name == "num_features"
    assert {"device", "dtype"} <= {p.name for p in others}
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in others)


@every_name
def test_the_docstring_gives_formula_shape_and_source(name):
    doc = inspect.getdoc(catalog.load("normlens.nn", name))
    assert re.search(r"\by = ", doc)
    assert "(N, C" in doc
    assert "Source:" in doc


@every_layer
def test_the_repr_contains_every_setting(subject):
    layer = build(subject)
    assert repr(layer).startswith(f"{type(layer).__name__}({CHANNELS}")
    for setting in settings_of(subject[0]):
        assert f"{setting}={getattr(layer, setting)}" in repr(layer)


@every_layer
def test_device_and_dtype_reach_every_parameter_and_floating_buffer(subject):
    state = build(subject, device="meta", dtype=torch.float64).state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    assert all(tensor.dtype == torch.float64 for tensor in state.values() if tensor.is_floating_point())


@every_layer
@both_modes
def test_shape_and_dtype_are_kept_at_every_spatial_rank_or_the_shape_is_refused(draw, subject, training):
    layer = lived_in(subject, draw, training)
    taken = [shape for shape in SHAPES if supports(layer, shape)]
    assert taken, f"{subject} refuses all of {SHAPES}"
    for shape in taken:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            y = evaluate(layer, draw(*shape, dtype=dtype))
            assert (tuple(y.shape), y.dtype) == (shape, dtype)


@every_layer
def test_a_wrong_number_of_channels_is_refused(subject):
    with pytest.raises(ValueError, match=rf"{CHANNELS} channels at dim 1; got \(3, 5, 2, 2\); "):
        build(subject)(torch.ones(3, 5, 2, 2))


@every_layer
@both_modes
def test_float32_agrees_with_float64_in_output_gradient_and_state(draw, subject, training):
    layer, readout = lived_in(subject, draw, training, torch.float32), draw(4, CHANNELS, 3, 3)
    x, results = draw(4, CHANNELS, 3, 3, dtype=torch.float32) * 2 + 3, []
    for dtype in (torch.float32, torch.float64):
        one, leaf = copy.deepcopy(layer).to(dtype), x.to(dtype, copy=True).requires_grad_()
        y = seeded(one, leaf)
        inputs = [leaf, *one.parameters()]
        gradients = torch.autograd.grad((y.tanh() * readout.to(dtype)).sum(), inputs)
        results.append([t.double() for t in (y, *gradients, *one.buffers())])
    for got, want in zip(*results, strict=True):
        scale = max(1.0, float(want.detach().abs().max()))
        assert_close(got / scale, want / scale, rtol=0, atol=100 * layer.sensitivity * torch.finfo(torch.float32).eps)


@every_layer
@both_modes
@pytest.mark.parametrize("spread", [10, 500])  # a variance of 250000 is beyond float16
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_far_from_zero_agrees_with_float64(draw, subject, training, spread, dtype):
    layer = lived_in(subject, draw, training, torch.float32)
    x = (draw(8, CHANNELS, 3, 3) * spread + 1000).to(dtype)
    half, double = copy.deepcopy(layer), copy.deepcopy(layer).double()
    got, want = seeded(half, x), seeded(double, x.double())
    eps = torch.finfo(dtype).eps * layer.sensitivity
    assert_close(got.double(), want, rtol=eps, atol=eps)
    for one, other in zip(half.buffers(), double.buffers(), strict=True):
        near = 1e-5 * layer.sensitivity
        assert_close(one.double(), other.double(), rtol=near, atol=near)  # the state is kept in float32


@every_layer
@both_modes
def test_autocast_does_not_lower_the_precision_of_statistics(draw, subject, training):
    layer, x = lived_in(subject, draw, training, torch.float32), draw(4, CHANNELS, 3, 3, dtype=torch.float32) + 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = evaluate(layer, x)
    assert_close(y, evaluate(layer, x), rtol=1e-6, atol=1e-6)


@every_layer
@both_modes
def test_first_and_second_derivatives_agree_with_differences(draw, subject, training):
    layer = lived_in(subject, draw, training)
    if not layer.exact_gradient:
        pytest.skip("its backward is not the derivative of its forward pass, and is pinned in a test of its own")
    for shape in smallest_inputs(layer):
        at = [t.detach().clone().requires_grad_() for t in (draw(*shape), *layer.parameters())]

        def call(*at):
            return evaluate(layer, *split(layer, at))

        assert torch.autograd.gradcheck(call, at)
        cotangent = draw(*shape).requires_grad_()  # gradgradcheck would draw it from the global random state
        assert torch.autograd.gradgradcheck(call, at, cotangent, fast_mode=True)


@every_layer
@both_modes
def test_forward_over_reverse_agrees_with_double_backward(
    draw, double_backward, forward_over_reverse, subject, training
):
    layer = lived_in(subject, draw, training)
    for shape in smallest_inputs(layer):
        at = (draw(*shape), *(p.detach() for p in layer.parameters()))
        v = tuple(draw(*t.shape) for t in at)
        loss = scalar(layer, draw(*shape))
        for got, want in zip(forward_over_reverse(loss, at, v), double_backward(loss, at, v), strict=True):
            assert_close(got, want, rtol=1e-10, atol=1e-10)


@every_layer
def test_state_moves_in_train_mode_only(draw, subject):
    layer = lived_in(subject, draw, training=False)
    before = copy.deepcopy(layer.state_dict())
    for training, tensors in ((False, before), (True, dict(layer.named_parameters()))):
        kept = copy.deepcopy({key: before[key] for key in tensors})
        layer.train(training)(draw(8, CHANNELS, 3, 3) * 3 - 2)
        for key, tensor in kept.items():
            assert torch.equal(layer.state_dict()[key], tensor), key
    moved = {key for key, tensor in before.items() if not torch.equal(layer.state_dict()[key], tensor)}
    assert moved >= {key for key in before if key.startswith("running_")}


@every_layer
def test_derivatives_of_the_input_do_not_enter_the_state(draw, subject):
    layer, x = lived_in(subject, draw), draw(4, CHANNELS, 3, 3)
    plain = copy.deepcopy(layer)
    plain(x)
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(x.clone().requires_grad_(), draw(*x.shape)))
        for key, buffer in layer.named_buffers():
            assert forward_ad.unpack_dual(buffer).tangent is None, key
    for (key, buffer), expected in zip(layer.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected), key
        assert not buffer.requires_grad, key


@every_layer
def test_the_state_dict_rebuilds_the_layer_from_a_file_that_holds_no_code(draw, subject):
    layer, fresh, file = lived_in(subject, draw), build(subject, dtype=torch.float64), io.BytesIO()
    torch.save(layer.state_dict(), file)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True)
    x = draw(4, CHANNELS, 3, 3)
    for training in (True, False):
        assert torch.equal(seeded(fresh.train(training), x), seeded(layer.train(training), x))


@every_layer
def test_a_deep_copy_is_equal_and_independent(draw, subject):
    layer = lived_in(subject, draw)
    state, twin, x = copy.deepcopy(layer.state_dict()), copy.deepcopy(layer), draw(4, CHANNELS, 3, 3)
    assert torch.equal(seeded(twin, x), seeded(copy.deepcopy(layer), x))
    for tensor in twin.state_dict().values():
        tensor += 1
    for key, tensor in state.items():
        assert torch.equal(layer.state_dict()[key], tensor), key


@every_layer
@both_modes
def test_the_global_random_state_is_left_alone(draw, subject, training):
    before, layer = torch.random.get_rng_state(), lived_in(subject, draw, training)
    if layer.random and training:
        pytest.skip("it draws as dropout does")
    if layer.random:
        before = torch.random.get_rng_state()  # what it learned in train mode came with draws
    layer(draw(4, CHANNELS, 3, 3))
    assert torch.equal(torch.random.get_rng_state(), before)


@every_layer
def test_the_input_is_left_alone(draw, subject):
    x = draw(4, CHANNELS, 3, 3)
    kept = x.clone()
    lived_in(subject, draw)(x)
    assert torch.equal(x, kept)


def test_the_package_finds_its_layers_and_imports_no_torch_for_it():
    code = "import sys, normlens.nn, normlens.catalog as c; print(c.names('normlens.nn'), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"{NAMES} False"
    assert {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"} <= set(NAMES)
