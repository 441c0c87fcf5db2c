"""The random states of Python, NumPy and torch, kept safe while our own code runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["preserved_random_state"]


@contextmanager
def preserved_random_state(seed: int | None = None) -> Iterator[None]:
    """Save every random state, optionally seed torch's, and put all of them back at the end, whatever happens.

    Dropout takes no generator, so a forward pass of our own can only be made repeatable by seeding the global one;
    that is why this exists. CUDA is touched only where it is in use already: seeding an idle CUDA would queue a call
    that reseeds the user's run later.

    Args:
        seed: the seed of torch's default generators inside the block; None leaves them where they stand.
    """
    # Not the legacy tuple: it knows only one of NumPy's generators, and warns of any other that the user has set.
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 - theirs, to be put back
    generators = _torch_generators()
    states = [generator.get_state() for generator in generators]
    try:
        if seed is not None:
            for generator in generators:
                generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)


def _torch_generators() -> list[torch.Generator]:
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += list(torch.cuda.default_generators)
    if torch.backends.mps.is_available():
        generators.append(torch.mps._get_default_mps_generator())
    return generators
