"""Batches: mini-batches of tensors in memory, shuffled by a seed and never by the global random state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batches", "epoch_order"]


def epoch_order(length: int, *, seed: int, epoch: int) -> Tensor:
    """Permute ``0, ..., length - 1`` as epoch ``epoch`` of ``seed`` does, always the same.

    Seed and epoch are hashed together (NumPy's ``SeedSequence``), so that epoch 1 of seed 0 is not epoch 0 of seed 1.

    Args:
        length: the number of examples.
        seed: a non-negative integer.
        epoch: a non-negative integer.
    """
    (state,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    # manual_seed takes any 64 bits, but as a signed number
    return torch.randperm(length, generator=torch.Generator().manual_seed(int(state.view(np.int64))))


class Batches:
    """A loader over tensors in memory that can be iterated again.

    Each ``iter()`` starts the next epoch, which visits every example once in the order of :func:`epoch_order`; so epoch
    ``k`` of a seed is the same whatever else the program draws. For a risk that must not depend on how examples meet
    in a batch (batch normalization in train mode), pass ``shuffle=False``.

    Args:
        inputs: a tensor ``(N, ...)``.
        targets: a tensor ``(N, ...)``.
        batch_size: examples in a batch; the last one may be smaller.
        seed: a non-negative integer; all the randomness there is.
        shuffle: whether to permute; without it every epoch goes in the order of the tensors.
        drop_last: whether to leave out a last batch that is not full.

    Attributes:
        epoch: the number of the epoch that the next ``iter()`` starts; set it to resume a run.

    Raises:
        ValueError: the lengths differ, ``batch_size < 1``, ``seed < 0`` or not a single batch would come.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        _check(inputs, targets, batch_size, seed, drop_last)
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.seed = batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.inputs), self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Not a generator itself: the epoch is counted at iter(), not when the first batch is asked for.
        length = len(self.inputs)
        order = epoch_order(length, seed=self.seed, epoch=self.epoch) if self.shuffle else torch.arange(length)
        self.epoch += 1
        return self._walk(order)

    def _walk(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield self.inputs[chosen], self.targets[chosen]


def _check(inputs: Tensor, targets: Tensor, batch_size: int, seed: int, drop_last: bool) -> None:
    if len(inputs) != len(targets):
        raise ValueError(
            f"inputs and targets must be equally long, got {len(inputs)} and {len(targets)}: "
            "pass one target for each input."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}: pass the number of examples in a batch.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}: pass 0, 1, 2, ...")
    if len(inputs) < (batch_size if drop_last else 1):
        raise ValueError(
            f"there must be at least one batch, got {len(inputs)} examples with batch_size={batch_size} and "
            f"drop_last={drop_last}: pass more examples, a smaller batch_size or drop_last=False."
        )
