"""Where a layer may be taken: compiled, in other memory formats, on other devices, down to a batch of one.

Found by walking the package, as in ``contract_layers.py``; no exceptions by name.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch.testing import assert_close

from normlens import catalog
from support.layers import CHANNELS, both_modes, evaluate, every_layer, every_name, lived_in, settings_of, supports

SINGLE = [(1, CHANNELS), (1, CHANNELS, 1, 1), (1, CHANNELS, 3, 3)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def output_and_gradients(call, layer, x, readout):
    """The output of ``call(x)`` and the gradients of a loss of it with respect to ``x`` and the parameters."""
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    return [y, *torch.autograd.grad((y.tanh() * readout).sum(), [leaf, *layer.parameters()])]


@every_name
def test_eval_mode_compiles_without_a_graph_break_to_the_same_function(draw, name):
    torch._dynamo.reset()
    layer, x, readout = lived_in((name, {}), draw, training=False), draw(4, CHANNELS, 3, 3), draw(4, CHANNELS, 3, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, want = (output_and_gradients(call, layer, x, readout) for call in (compiled, layer))
    assert_close(got, want, rtol=1e-12, atol=1e-12)


@every_layer
@both_modes
@pytest.mark.parametrize("shape", SINGLE, ids=str)
def test_a_batch_of_one_is_refused_by_name_and_shape_or_answered_as_in_float64(draw, subject, training, shape):
    layer, x = lived_in(subject, draw, training, torch.float32), draw(*shape, dtype=torch.float32)
    double = copy.deepcopy(layer).double()
    if supports(double, shape):
        got, want = evaluate(layer, x).double(), evaluate(double, x.double())
        near = 100 * layer.sensitivity * torch.finfo(torch.float32).eps
        assert_close(got, want, rtol=near, atol=near)
    else:
        assert training or shape != SINGLE[-1], "an image by itself must pass in eval mode"


@every_name
@pytest.mark.parametrize("groups", [3, 8, 0, -1])
def test_groups_that_do_not_divide_the_channels_are_refused(name, groups):
    cls = catalog.load("normlens.nn", name)
    for setting in (s for s in settings_of(name) if re.fullmatch(r"(num_)?groups|group_size", s)):
        with pytest.raises(ValueError, match=rf"{cls.__name__}.*{CHANNELS}.*{setting}={groups}"):
            cls(CHANNELS, **{setting: groups})


@every_layer
@both_modes
def test_the_memory_format_of_the_input_does_not_matter(draw, subject, training):
    layer, x, readout = lived_in(subject, draw, training), draw(4, CHANNELS, 3, 2), draw(4, CHANNELS, 3, 2)
    if layer.random and training:
        pytest.skip("it draws as dropout does, in the order of memory")
    results = []
    for laid_out in (x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        results.append(output_and_gradients(lambda leaf: evaluate(layer, leaf), layer, laid_out, readout))
        assert_close(results[-1], results[0], rtol=1e-12, atol=1e-12)


@needs_cuda
@every_name
@both_modes
def test_a_gpu_gives_the_numbers_of_the_cpu(draw, name, training):
    layer, x, readout = lived_in((name, {}), draw, training), draw(4, CHANNELS, 3, 3), draw(4, CHANNELS, 3, 3)
    if layer.random and training:
        pytest.skip("it draws as dropout does, which differs between devices")
    there = copy.deepcopy(layer).cuda()
    results = []
    for one, device in ((layer, "cpu"), (there, "cuda")):
        at = output_and_gradients(one, one, x.to(device), readout.to(device))
        results.append([t.cpu() for t in (*at, *one.buffers())])
    assert_close(*results, rtol=1e-10, atol=1e-10)
