"""What a batch is: a pair, a mapping, or anything else that holds tensors."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from normlens.typing import Batch, Data

__all__ = ["batch_size", "fingerprint", "first_samples", "is_one_batch", "move_batch", "split_batch", "tensors_of"]

_LOOKED_AT = 256  # values of a tensor, evenly spaced: enough to see that a loader was shuffled


def split_batch(batch: Batch) -> tuple[Any, Any]:
    """Return (inputs, targets): the two halves of a pair; of anything else, the batch itself twice."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, batch


def is_one_batch(data: Data) -> bool:
    """Tell a batch from a collection of batches: a tensor, a mapping, or a sequence that holds a tensor itself."""
    if isinstance(data, Tensor | Mapping):
        return True
    return isinstance(data, list | tuple) and any(isinstance(item, Tensor) for item in data)


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    """Yield the tensors within a batch, however nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from itertools.chain.from_iterable(map(tensors_of, batch.values()))
    elif isinstance(batch, Iterable) and not isinstance(batch, str):
        yield from itertools.chain.from_iterable(map(tensors_of, batch))


def batch_size(batch: Batch) -> int:
    """Return the number of samples: the length of the first tensor."""
    first = next(tensors_of(batch), None)
    return len(first) if first is not None and first.ndim else 1


def move_batch(batch: Batch, device: torch.device | None) -> Batch:
    """Return the batch with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device) if device is not None else batch
    if isinstance(batch, Mapping):
        return {key: move_batch(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [move_batch(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def fingerprint(batch: Batch) -> int:
    """Return a checksum of shapes, dtypes and some values, to tell one batch from another."""
    crc = 0
    for tensor in tensors_of(batch):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // _LOOKED_AT)].contiguous().cpu()
        described = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
        crc = zlib.crc32(some.view(torch.uint8).numpy().tobytes(), zlib.crc32(described, crc))
    return crc


def first_samples(batch: Batch, samples: int, *, double: bool = False) -> Batch:
    """Return the first samples of a batch, floating-point tensors in float64 if ``double``."""
    n = batch_size(batch)

    def first(value: Any) -> Any:
        if isinstance(value, Tensor):
            part = value[:samples] if value.ndim and len(value) == n else value
            return part.double() if double and part.is_floating_point() else part
        if isinstance(value, Mapping):
            return {key: first(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(first, value)) if not hasattr(value, "_fields") else type(value)(*map(first, value))
        return value

    return first(batch)
