"""What every layer of ``normlens.nn.weighted`` keeps, found by walking the package: a new file joins by being there.

A layer is a subclass of ``normlens.nn.weighted.base.Weighted`` named in its module's ``__all__``. How it is built and
called is told by the names of its constructor's arguments, as in PyTorch; there is nothing else to declare:

* What has no default is a size (positional) that ``SIZES`` in ``support/weighted_layers.py`` knows, or the keyword
  ``generator``, which alone draws the weights (a layer that draws nothing takes none); everything else is keyword only
  and has a default, among it ``device`` and ``dtype``.
* The first argument tells the input: ``in_features`` takes ``(N, in_features)``; ``in_channels`` takes ``(N, C,
  *spatial)`` of the rank of ``kernel_size``, and so does ``num_features``; ``input_size`` takes ``(T, N, features)``,
  time first. Sizes of features and channels are multiples of four, for quaternions.
* ``forward(x)`` must do with ``x`` alone. It returns a tensor or a nest of tuples of tensors, in the dtype of ``x``.
* Buffers move in train mode at most, parameters never in ``forward``. A wrong size of the last (features) or second
  (channels) dimension is a ValueError that says the layer's name and the shape that came.

Layers are called on deep copies, so that one with buffers answers alike every time. No exceptions by name.
"""

from __future__ import annotations

import copy
import inspect
import re
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

import normlens.nn.weighted as package
from support.weighted_layers import (
    LAYERS,
    SIZES,
    both_modes,
    build,
    evaluate,
    every_class,
    every_layer,
    example,
    lived_in,
    readouts_for,
    scalar,
    settings_of,
    split,
    tensors,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@every_class
def test_the_index_hands_on_the_class_and_the_constructor_names_all_it_takes(cls):
    assert getattr(package, cls.__name__) is cls
    parameters = inspect.signature(cls).parameters
    required = [name for name, p in parameters.items() if p.default is p.empty]
    assert set(required) <= {*SIZES, "generator"}
    for name, p in parameters.items():
        assert p.kind is (p.POSITIONAL_OR_KEYWORD if name in required and name != "generator" else p.KEYWORD_ONLY), name
    assert {"device", "dtype"} <= set(parameters)


@every_class
def test_the_docstring_gives_formula_shapes_and_source(cls):
    doc = inspect.getdoc(cls)
    assert re.search(r"``[^`]+ = [^`]+``", doc)
    assert "Shapes:" in doc
    assert "Source:" in doc


@every_layer
def test_the_repr_names_every_setting(subject):
    layer = build(subject)
    for setting in settings_of(subject[0]):
        value = getattr(layer, setting)
        shown = getattr(value, "__name__", value)
        assert f"{setting}={shown}" in repr(layer)


@every_layer
def test_device_and_dtype_reach_every_parameter_and_floating_buffer(subject):
    layer = build(subject, device="meta", dtype=torch.float64)
    assert all(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
    assert all(t.dtype == torch.float64 for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point())


@every_layer
def test_the_generator_alone_decides_the_weights_in_every_dtype(subject):
    if "generator" not in inspect.signature(subject[0]).parameters:
        pytest.skip("it draws nothing")
    first, again, other = (build(subject, seed, dtype=torch.float64) for seed in (1, 1, 2))
    single = build(subject, 1, dtype=torch.float32)
    for p, q, r in zip(first.parameters(), again.parameters(), single.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.float(), r)
    assert any(not torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))


@every_layer
@both_modes
def test_the_output_has_the_dtype_of_the_input(draw, subject, training):
    layer = lived_in(subject, draw, training)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert {y.dtype for y in evaluate(layer, example(layer, draw, dtype=dtype))} == {dtype}


@every_layer
def test_an_input_of_another_size_or_kind_is_refused(draw, subject):
    layer = build(subject)
    x = example(layer, draw, more=1, dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"{subject[0].__name__}.*got {re.escape(str(tuple(x.shape)))}"):
        layer(x)
    with pytest.raises(ValueError, match=rf"{subject[0].__name__}.*floating-point.*torch.int64"):
        layer(example(layer, draw).long())


@every_layer
@both_modes
def test_float32_agrees_with_float64_in_output_gradient_and_state(draw, subject, training):
    layer = lived_in(subject, draw, training, torch.float32)
    x, results = example(layer, draw, dtype=torch.float32), []
    readouts = readouts_for(layer, x, draw)
    for dtype in (torch.float32, torch.float64):
        one, leaf = copy.deepcopy(layer).to(dtype), x.to(dtype, copy=True).requires_grad_()
        outputs = tensors(one(leaf))
        gradients = torch.autograd.grad(scalar(outputs, readouts), [leaf, *one.parameters()])
        results.append([t.double() for t in (*outputs, *gradients, *one.buffers())])
    for got, want in zip(*results, strict=True):
        scale = max(1.0, float(want.detach().abs().max()))
        assert_close(got / scale, want / scale, rtol=0, atol=100 * layer.sensitivity * torch.finfo(torch.float32).eps)


@every_layer
@both_modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_with_in_float32(draw, subject, training, dtype):
    layer = lived_in(subject, draw, training, torch.float32)
    x = example(layer, draw, dtype=dtype)
    half, single = copy.deepcopy(layer), copy.deepcopy(layer)
    for got, want in zip(tensors(half(x)), tensors(single(x.float())), strict=True):
        assert torch.equal(got, want.to(dtype))
    for got, want in zip(half.buffers(), single.buffers(), strict=True):
        assert torch.equal(got, want)


@every_layer
@both_modes
def test_autocast_rounds_to_bfloat16_and_no_worse(draw, subject, training):
    layer = lived_in(subject, draw, training, torch.float32)
    x = example(layer, draw, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = evaluate(layer, x)
    for got, want in zip(lowered, evaluate(layer, x), strict=True):
        near = 4 * layer.sensitivity * torch.finfo(torch.bfloat16).eps * max(1.0, float(want.detach().abs().max()))
        assert_close(got.float(), want, rtol=0, atol=near)


@every_layer
@both_modes
def test_first_and_second_derivatives_agree_with_differences(draw, subject, training):
    layer = lived_in(subject, draw, training)
    x = example(layer, draw, 3)
    at = [t.detach().clone().requires_grad_() for t in (x, *layer.parameters())]

    def call(*at):
        return tuple(evaluate(layer, *split(layer, at)))

    assert torch.autograd.gradcheck(call, at)
    # gradgradcheck would draw the cotangents from the global random state
    cotangents = [r.requires_grad_() for r in readouts_for(layer, x, draw)]
    assert torch.autograd.gradgradcheck(call, at, cotangents, fast_mode=True)


@every_layer
@both_modes
def test_forward_over_reverse_agrees_with_double_backward(
    draw, double_backward, forward_over_reverse, subject, training
):
    layer = lived_in(subject, draw, training)
    x = example(layer, draw, 4)
    readouts, at = readouts_for(layer, x, draw), (x, *(p.detach() for p in layer.parameters()))
    v = tuple(draw(*t.shape) for t in at)

    def loss(*at):
        return scalar(evaluate(layer, *split(layer, at)), readouts)

    for got, want in zip(forward_over_reverse(loss, at, v), double_backward(loss, at, v), strict=True):
        assert_close(got, want, rtol=1e-10, atol=1e-10)


@every_layer
def test_parameters_never_move_in_a_call_and_buffers_in_train_mode_only(draw, subject):
    layer = lived_in(subject, draw, training=False)
    before = copy.deepcopy(layer.state_dict())
    for training, tensors_kept in ((False, set(before)), (True, set(dict(layer.named_parameters())))):
        layer.train(training)(example(layer, draw, 8) * 3 - 2)
        for key in tensors_kept:
            assert torch.equal(layer.state_dict()[key], before[key]), key


@every_layer
def test_derivatives_of_the_input_do_not_enter_the_state(draw, subject):
    layer = lived_in(subject, draw)
    plain, x = copy.deepcopy(layer), example(layer, draw)
    plain(x)
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(x.clone().requires_grad_(), draw(*x.shape)))
        for key, buffer in layer.named_buffers():
            assert forward_ad.unpack_dual(buffer).tangent is None, key
    for (key, buffer), expected in zip(layer.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected), key
        assert not buffer.requires_grad, key


@every_layer
def test_the_state_dict_rebuilds_the_layer(draw, subject):
    layer, fresh = lived_in(subject, draw), build(subject, seed=4, dtype=torch.float64)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    x = example(layer, draw)
    for training in (True, False):
        pairs = zip(tensors(fresh.train(training)(x)), tensors(layer.train(training)(x)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@every_layer
def test_a_deep_copy_is_equal_and_independent(draw, subject):
    layer = lived_in(subject, draw)
    state, twin, x = copy.deepcopy(layer.state_dict()), copy.deepcopy(layer), example(layer, draw)
    pairs = zip(tensors(twin(x)), tensors(copy.deepcopy(layer)(x)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for tensor in twin.state_dict().values():
        tensor += 1
    for key, tensor in state.items():
        assert torch.equal(layer.state_dict()[key], tensor), key


def outputs_and_gradients(call, layer, x, readouts):
    """The outputs of ``call(x)`` and the gradients of a loss of them with respect to ``x`` and the parameters."""
    leaf = x.clone().requires_grad_()
    outputs = tensors(call(leaf))
    return [*outputs, *torch.autograd.grad(scalar(outputs, readouts), [leaf, *layer.parameters()])]


@every_layer
def test_it_compiles_to_one_graph_in_eval_mode(draw, subject):
    layer = lived_in(subject, draw, training=False)
    x = example(layer, draw)
    readouts = readouts_for(layer, x, draw)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, want = (outputs_and_gradients(call, layer, x, readouts) for call in (compiled, layer))
    assert_close(got, want, rtol=1e-12, atol=1e-12)


@needs_cuda
@every_layer
@both_modes
def test_cuda_agrees_with_the_cpu(draw, subject, training):
    layer = lived_in(subject, draw, training)
    x, there = example(layer, draw), copy.deepcopy(layer).cuda()
    readouts = readouts_for(layer, x, draw)
    want = outputs_and_gradients(layer, layer, x, readouts)
    got = outputs_and_gradients(there, there, x.cuda(), [r.cuda() for r in readouts])
    assert_close([t.cpu() for t in got], want, rtol=1e-10, atol=1e-10)


@every_layer
@both_modes
def test_the_global_random_state_and_the_input_are_left_alone(draw, subject, training):
    before = torch.random.get_rng_state()
    layer = lived_in(subject, draw, training)
    x = example(layer, draw)
    kept = x.clone()
    layer(x)
    assert torch.equal(x, kept)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_package_finds_its_layers_and_imports_no_torch_for_it():
    code = "import sys, normlens.nn.weighted as w; print(sorted(w.__all__), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith(" False")
    assert all(repr(name) in shown for name in LAYERS)
    assert {"LinearTransformPerceptron", "NormPropConv", "NormPropLinear"} <= set(LAYERS)
