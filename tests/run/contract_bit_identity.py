"""P1: training is bit-identical with and without probes, and whatever a probe does."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from normlens.catalog import load, names
from normlens.run.lens import Lens
from normlens.run.probe import Reading, Step
from support.networks import NETWORKS, Whole, batch, conv_batch_norm
from support.training import train


def every_probe() -> list:
    return [load("normlens.probes", name)() for name in names("normlens.probes")]


def open_with(probes, path: Path, **settings):
    def open_lens(model, optimizer):
        loss = nn.functional.cross_entropy
        return Lens(model, loss, batch(32, seed=1), probes=probes, out=path, every=1, optimizer=optimizer, **settings)

    return open_lens


QUICK = ("conv_batch_norm",)  # the other five take two minutes; CI runs them with what is slow


# In train mode spectral_norm's vectors move with the weights, which autograd does not see: the Hessian says so.
@pytest.mark.filterwarnings("ignore:normlens. the Hessian does not agree:RuntimeWarning")
@pytest.mark.parametrize(
    "network", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_fifty_steps_are_bit_identical_with_every_probe_at_every_step_and_without(network, tmp_path):
    build = NETWORKS[network]
    watched = train(build, open_with(every_probe(), tmp_path / "run"))
    assert watched == train(build, None)


@dataclass(frozen=True)
class Raises:
    """Fails where it is told to, after having done all the damage that it can."""

    where: str = "before"

    def cost(self, step: Step) -> float:
        return 1.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        if self.where == "before":
            raise ValueError("before")
        try:
            yield Reading("damage", vandalize(step.risk.model))
            if self.where == "forward":
                step.risk.model(torch.zeros(1, 99))
            if self.where == "backward":
                step.risk.model.train()
                loss = Poison.apply(step.risk.model(step.batch[0]).sum() if step.batch else torch.zeros(()))
                loss.requires_grad_() if not loss.requires_grad else loss
                loss.backward()
                raise ValueError("backward")
        finally:
            if self.where == "clean-up":
                raise ValueError("clean-up")


class Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("backward")


def vandalize(model: nn.Module) -> float:
    """Draw random numbers, train a little on the user's own tensors, and leave modes, flags and attributes changed."""
    import random

    import numpy as np

    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
    for module in model.modules():
        module.training = not module.training
        module.scratch = "left behind"
        module.register_forward_hook(lambda *_: None)
    for parameter in model.parameters():
        parameter.data.mul_(2)
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    for buffer in model.buffers():
        buffer.zero_()
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    return 1.0


@pytest.mark.parametrize("where", ["before", "forward", "backward", "clean-up", "nowhere"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_probe_that_destroys_everything_and_raises_changes_no_bit_of_the_training(network, where, tmp_path):
    build = NETWORKS[network]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = train(build, open_with([Raises(where)], tmp_path / "run"), steps=5)
    assert watched == train(build, None, steps=5)
    assert not torch.are_deterministic_algorithms_enabled()
    assert len([w for w in caught if "failed at step" in str(w.message)]) == (where != "nowhere")


def test_the_users_hooks_fire_as_often_as_without_us(tmp_path):
    def counting(count: list[int]):
        def build() -> nn.Module:
            model = conv_batch_norm()
            for module in model.modules():
                module.register_forward_hook(lambda *_: count.append(1))
                module.register_forward_pre_hook(lambda *_: count.append(1))
            model[-1].register_full_backward_hook(lambda *_: count.append(1))
            model[-1].weight.register_hook(lambda grad: count.append(1))
            model[-1].weight.register_post_accumulate_grad_hook(lambda p: count.append(1))
            return model

        return build

    with_lens, without = [], []
    train(counting(with_lens), open_with(every_probe(), tmp_path / "run"), steps=5)
    train(counting(without), None, steps=5)
    assert len(with_lens) == len(without) > 0


@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "DataParallel"])
def test_a_wrapped_model_trains_bit_identically_and_its_eager_module_is_measured(how, tmp_path):
    def wrap(model: nn.Module) -> nn.Module:
        if how == "torch.compile":
            return torch.compile(model, backend="eager")
        if how == "module.compile":
            model.compile(backend="eager")
            return model
        return nn.DataParallel(model)

    def build() -> nn.Module:
        return Whole(conv_batch_norm())

    torch._dynamo.reset()
    watched = train(build, open_with(every_probe(), tmp_path / "run", on_error="raise"), wrap=wrap, steps=8)
    torch._dynamo.reset()
    assert watched == train(build, None, wrap=wrap, steps=8)


def test_measuring_does_not_make_a_compiled_model_compile_again(tmp_path):
    torch._dynamo.reset()
    compilations = []

    def backend(graph, inputs):
        compilations.append(1)
        return graph.forward

    def wrap(model):
        return torch.compile(model, backend=backend)

    train(conv_batch_norm, None, wrap=wrap, steps=4)
    alone = len(compilations)
    torch._dynamo.reset()
    compilations.clear()
    train(conv_batch_norm, open_with(every_probe(), tmp_path / "run"), wrap=wrap, steps=4)
    assert len(compilations) == alone > 0
