"""Resumable: an operator whose products outlive the process that formed them."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from normlens.batch import tensors_of
from normlens.curvature.operator import LinearOperator
from normlens.risk import EmpiricalRisk

__all__ = ["Resumable", "resumable"]

_MAGIC = b"normlens products 1\n"
_NAME = 32  # bytes of the digest that a product is found by
_CHECK = 4  # bytes of its checksum


class Resumable(LinearOperator):
    """A matrix that keeps each product in a file and reads it from there when it is asked for again.

    Attributes:
        formed: products formed by this process.
        recalled: products that were read instead.
    """

    def __init__(self, operator: LinearOperator, path: Path, places: dict[bytes, int]) -> None:
        super().__init__(operator.shape[0], operator.dtype, operator.device, (operator,))
        self.formed, self.recalled = 0, 0
        self._operator, self._path, self._places = operator, path, places

    def matvec(self, v: Tensor) -> Tensor:
        """Return A v, from the file if it is there."""
        name = hashlib.sha256(_bytes(v)).digest()
        if name in self._places:
            self.recalled += 1
            return self._read(self._places[name])
        product = self._operator.matvec(v)
        self._append(name, _bytes(product))
        self.formed += 1
        return product

    def _read(self, place: int) -> Tensor:
        with self._path.open("rb") as file:
            file.seek(place)
            content = bytearray(file.read(self.shape[0] * self.dtype.itemsize))
        return torch.frombuffer(content, dtype=self.dtype).to(self.device)

    def _append(self, name: bytes, content: bytes) -> None:
        with self._path.open("ab") as file:  # closed at once: what the operating system has survives this process
            begin = file.tell()
            file.write(name + _checksum(name, content) + content)
        self._places[name] = begin + _NAME + _CHECK


def resumable(operator: LinearOperator, path: str | os.PathLike[str], *, key: EmpiricalRisk | str) -> Resumable:
    """Return the same matrix, with every product kept in a file: what was killed goes on without repeating one.

    All methods of this package ask for the same vectors in the same order when they are called with the same arguments
    and generators of the same state, on the same machine. So the whole computation is simply started again, by the same
    lines of code: products that are in the file are read, the others formed.

    Args:
        operator: A, n x n. The file takes n numbers of its dtype for each product; remove it when all is done.
        path: the file; made if it is not there. One process at a time may use it.
        key: what tells this matrix from others: the risk that it was made from (its parameters, buffers, data, mode
            and seed are hashed), or a text of your own. A file of another key is refused.

    Raises:
        ValueError: the file is of another matrix, or no such file at all.
    """
    kind, name = type(operator).__name__, key if isinstance(key, str) else _digest(key)
    facts = {"kind": kind, "rows": operator.shape[0], "dtype": str(operator.dtype), "key": name}
    header = _MAGIC + json.dumps(facts).encode() + b"\n"
    if not Path(path).exists():
        Path(path).write_bytes(header)
    with open(path, "r+b") as file:
        if (found := file.read(len(header))) != header:
            raise ValueError(
                f"{path} must hold products of this matrix, {header[len(_MAGIC) : -1].decode()}; it begins with "
                f"{found[len(_MAGIC) :][:200]!r}: name another file, or remove it if its products are no longer wanted"
            )
        places = _whole_records(file, operator.shape[0] * operator.dtype.itemsize)
    return Resumable(operator, Path(path), places)


def _whole_records(file: BinaryIO, size: int) -> dict[bytes, int]:
    """Return where each product is, and cut off what a killed process left unfinished."""
    places: dict[bytes, int] = {}
    while len(head := file.read(_NAME + _CHECK)) == _NAME + _CHECK:
        name, place = head[:_NAME], file.tell()
        content = file.read(size)
        if len(content) < size or _checksum(name, content) != head[_NAME:]:
            file.seek(place - _NAME - _CHECK)
            file.truncate()
            return places
        places[name] = place
    file.truncate(file.tell() - len(head))
    return places


def _digest(risk: EmpiricalRisk) -> str:
    """Hash all that the risk's derivatives depend on, but for the code of its model and loss."""
    digest = hashlib.sha256(repr((risk.mode, risk.seed, sorted(risk.parameters))).encode())
    for name, tensor in risk.model.state_dict().items():
        digest.update(name.encode() + _bytes(tensor))
    for batch in risk.batches():
        for tensor in tensors_of(batch):
            digest.update(repr((tensor.shape, tensor.dtype)).encode() + _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _checksum(name: bytes, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(name)).to_bytes(_CHECK, "little")
