"""Data, networks and the trainings that the tests of optimizer transforms share: seeded, in float64 unless told."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _layers_are_the_same_in_every_run() -> Iterator[None]:
    """A layer made within a test draws its weights from the global state: here from a seed, and it is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """``draw(2, 3)``: normal numbers of that shape, the same ones in every run."""
    generator = torch.Generator().manual_seed(20)
    return lambda *shape, dtype=torch.float64: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def small_cnn(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A grouped convolution, one with stride, and a linear head; for images ``(N, 2, 6, 6)`` and four outputs."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2, stride=2, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 4),
    ).to(dtype)  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return network


@pytest.fixture
def cnn() -> Callable[..., nn.Sequential]:
    """``cnn()``: always the same network, in float64 unless told."""
    return small_cnn


@pytest.fixture
def batches(draw: Callable[..., Tensor]) -> list[Batch]:
    """Ten batches for ``cnn``, of eight samples with means far from zero."""
    return [(draw(8, 2, 6, 6) + 1, draw(8, 4)) for _ in range(10)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], parts: int = 1) -> None:
    """Step once per batch; its gradient is gathered from ``parts`` equal parts of it."""
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        for inputs, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (nn.functional.mse_loss(model(inputs), targets) / parts).backward()
        optimizer.step()


@pytest.fixture
def run_training() -> Callable[..., None]:
    """``run_training(model, optimizer, batches, parts=1)``."""
    return train


@pytest.fixture
def resumed_equals_uninterrupted(batches: list[Batch]) -> Callable[..., None]:
    """``resumed_equals_uninterrupted(build)`` with ``build() -> model, optimizer, transform``: bit for bit.

    One training runs through; the other is saved after ``at`` of ten steps, loaded into new objects, trained on.
    """

    def check(build: Callable[[], tuple[nn.Module, torch.optim.Optimizer, Any]], at: int = 5) -> None:
        whole = build()
        train(whole[0], whole[1], batches)
        first = build()
        train(first[0], first[1], batches[:at])
        file = io.BytesIO()
        torch.save([part.state_dict() for part in first], file)
        file.seek(0)
        second = build()
        for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        train(second[0], second[1], batches[at:])
        untouched = build()[0]
        for name, parameter in whole[0].state_dict().items():
            assert torch.equal(parameter, second[0].state_dict()[name]), name
            assert not torch.equal(parameter, untouched.state_dict()[name]), name

    return check


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Count the hooks on a model, its parameters and its optimizer."""
    on_modules = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    )
    on_tensors = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    on_optimizer = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return on_modules + on_tensors + on_optimizer


@pytest.fixture
def count_hooks() -> Callable[..., int]:
    """``count_hooks(model, optimizer)``."""
    return hooks_of
