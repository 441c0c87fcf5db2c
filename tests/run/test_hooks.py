from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from normlens.module_state import preserved_attributes
from normlens.run.hooks import silenced_hooks
from support.networks import batch, mlp, spectral_norm


def test_hooks_of_every_kind_are_silent_inside_and_fire_again_outside():
    model, (x, y) = mlp(), batch()
    x.requires_grad_()  # else torch warns that a full backward hook has nothing to report
    fired = []
    everywhere = register_module_forward_hook(lambda *_: fired.append("global"))
    model[0].register_forward_hook(lambda *_: fired.append("forward"))
    model[0].register_forward_pre_hook(functools.partial(lambda *_: fired.append("pre")))
    model[0].register_full_backward_hook(lambda *_: fired.append("backward"))
    try:
        with preserved_attributes(model), silenced_hooks(model):
            nn.functional.cross_entropy(model(x), y).backward()
        assert fired == []
        nn.functional.cross_entropy(model(x), y).backward()
        assert {"global", "forward", "pre", "backward"} == set(fired)
    finally:
        everywhere.remove()


def test_legacy_spectral_norm_still_computes_its_weight_inside():
    model, (x, _) = spectral_norm().eval(), batch()
    expected = model(x)
    with preserved_attributes(model), silenced_hooks(model), torch.no_grad():
        model[0].weight_orig.mul_(3)  # the normalized weight must not change: the hook recomputed it
        inside = model(x)
    assert torch.allclose(inside, expected, rtol=1e-5, atol=1e-6)


def test_a_hook_removed_inside_through_its_handle_stays_removed():
    model = mlp()
    handle = model[0].register_forward_hook(lambda *_: None)
    with silenced_hooks(model):
        handle.remove()
    with preserved_attributes(model), silenced_hooks(model):
        pass
    assert handle.id not in model[0]._forward_hooks
