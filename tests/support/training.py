"""A training loop that a lens watches, or not."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from normlens.run.lens import Lens
from support.fingerprint import fingerprint
from support.networks import batch


def train(
    build: Callable[[], nn.Module],
    open_lens: Callable[[nn.Module, torch.optim.Optimizer], Lens] | None,
    *,
    steps: int = 50,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> dict[str, str]:
    """Train for a few steps with all global random states in use, and return the fingerprint of everything."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = build()
    called = wrap(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = batch(64)
    lens = None if open_lens is None else open_lens(called, optimizer).start()
    for _ in range(steps):
        chosen = torch.randint(0, 64, (16,))
        noise = random.random() + np.random.rand()  # noqa: NPY002
        loss = nn.functional.cross_entropy(called(x[chosen] + 0.01 * noise), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if lens is not None:
            lens.step(loss=loss, batch=(x[chosen], y[chosen]))
    if lens is not None:
        lens.close()
    return fingerprint(model, optimizer)
