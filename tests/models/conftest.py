"""What the tests of this folder share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch


@pytest.fixture
def global_random_states() -> Callable[[], str]:
    """Return a function that hashes the global random states of torch, NumPy and Python."""

    def digest() -> str:
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        key, place = numpy["state"]["key"].tolist(), numpy["state"]["pos"]  # a draw moves the place, not the key
        states = (torch.get_rng_state().tolist(), key, place, numpy["has_gauss"], numpy["gauss"], random.getstate())
        return hashlib.sha256(repr(states).encode()).hexdigest()

    return digest
