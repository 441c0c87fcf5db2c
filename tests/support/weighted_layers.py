"""Layers with weights as the contract tests take them: found, built, fed and called; see ``contract_weighted.py``."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import normlens.nn.weighted as package
from normlens.nn.weighted.base import Weighted

SIZES = {
    "in_features": 4, "hidden_features": 5, "out_features": 8, "in_channels": 4, "out_channels": 8,
    "kernel_size": (3, 2), "num_features": 4, "input_size": 3, "hidden_size": 4, "max_length": 3,
}  # fmt: skip
TIME = 3  # steps of a sequence, not above max_length


def layers():
    """Every public layer of the package, by name."""
    found = {}
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        public = importlib.import_module(module.name)
        for name in public.__all__:
            cls = getattr(public, name)
            if isinstance(cls, type) and issubclass(cls, Weighted) and cls is not Weighted:
                found[name] = cls
    return found


LAYERS = layers()


def settings_of(cls):
    """The constructor's parameters without what no module remembers."""
    return {k: p for k, p in inspect.signature(cls).parameters.items() if k not in {"generator", "device", "dtype"}}


def variants():
    """Every layer as it is from its sizes alone, and once more with each of its switches flipped."""
    for name, cls in LAYERS.items():
        yield pytest.param((cls, {}), id=name)
        for key, p in settings_of(cls).items():
            if isinstance(p.default, bool):
                flipped = not p.default
                yield pytest.param((cls, {key: flipped}), id=f"{name}-{key}={flipped}", marks=pytest.mark.slow)


every_class = pytest.mark.parametrize("cls", [pytest.param(cls, id=name) for name, cls in LAYERS.items()])
every_layer = pytest.mark.parametrize("subject", list(variants()))
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def build(subject, seed=3, **placement):
    cls, settings = subject
    parameters = inspect.signature(cls).parameters
    sizes = [SIZES[name] for name, p in parameters.items() if p.default is p.empty and name != "generator"]
    drawn = {"generator": torch.Generator().manual_seed(seed)} if "generator" in parameters else {}
    return cls(*sizes, **drawn, **settings, **placement)


def example(layer, draw, n=6, dtype=torch.float64, more=0):
    """Standard normal numbers in the shape that the layer takes; ``more`` features than that are too many."""
    first = next(iter(inspect.signature(type(layer)).parameters))
    features = SIZES[first] + more
    space = tuple(4 for _ in SIZES["kernel_size"])
    shape = {
        "in_features": (n, features), "in_channels": (n, features, *space), "num_features": (n, features, *space),
    }  # fmt: skip
    return draw(*shape.get(first, (TIME, n, features)), dtype=dtype)


def lived_in(subject, draw, training=True, dtype=torch.float64):
    """A layer that is no longer at its initial values: parameters perturbed, two batches seen."""
    layer = build(subject, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * draw(*parameter.shape, dtype=dtype)
        for _ in range(2):
            layer(example(layer, draw, 8, dtype) * 2 + 1)
    return layer.train(training)


def tensors(outputs):
    """All tensors of an output, in order."""
    return [outputs] if isinstance(outputs, Tensor) else [t for part in outputs for t in tensors(part)]


def evaluate(layer, x, parameters=None):
    """One call from the state the layer is in, which stays as it is."""
    state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    named = {**state, **(parameters or dict(layer.named_parameters()))}
    return tensors(functional_call(copy.deepcopy(layer), named, (x,)))


def split(layer, at):
    """Turn the tuple (x, *parameters) back into what ``evaluate`` takes."""
    return at[0], dict(zip(dict(layer.named_parameters()), at[1:], strict=True))


def scalar(outputs, readouts):
    """A loss with curvature of its own."""
    return sum((torch.tanh(y) * r.to(y.dtype)).sum() for y, r in zip(outputs, readouts, strict=True))


def readouts_for(layer, x, draw):
    return [draw(*y.shape) for y in evaluate(layer, x)]
