from __future__ import annotations

import gzip
import math
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from normlens.data._idx import read_idx
from normlens.data.errors import DataError

VALUES = (np.arange(2 * 3 * 4) * 11 % 256).astype(np.uint8).reshape(2, 3, 4)


def header(*shape: int) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refused(path: Path, match: str) -> int:
    """Check that the file is refused for this reason and return the most bytes that were held in between."""
    tracemalloc.start()
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} must be .*{match}.*fetch .* from example.org"):
        read_idx(path, ndim=3, published="example.org")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_plain_and_gzip_files_give_the_array_that_was_written(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, header(2, 3, 4) + VALUES.tobytes())
    np.testing.assert_array_equal(read_idx(path, ndim=3, published=""), VALUES)


def test_sizes_are_big_endian_and_longer_than_a_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "a", bytes.fromhex("00000801 0000012c") + bytes(range(256)) + bytes(44))
    values = read_idx(path, ndim=1, published="")
    assert values.tolist() == [*range(256), *[0] * 44]


def test_more_than_one_chunk_is_read_whole(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, size=(3, 1000, 1000), dtype=np.uint8)
    path = write(tmp_path / "a.gz", header(3, 1000, 1000) + values.tobytes())
    np.testing.assert_array_equal(read_idx(path, ndim=3, published=""), values)


@pytest.mark.parametrize("name", ["a", "a.gz"])
@pytest.mark.parametrize(("change", "came"), [(-1, "23 came|size of 39 bytes"), (1, "more came")])
def test_a_body_that_is_not_what_the_header_claims_is_refused(
    tmp_path: Path, name: str, change: int, came: str
) -> None:
    body = (VALUES.tobytes() + b"\0")[: VALUES.size + change]
    refused(write(tmp_path / name, header(2, 3, 4) + body), f"24 bytes after its header, .*({came})")


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_a_header_that_claims_terabytes_is_refused_before_anything_is_allocated(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, header(1 << 31, 1 << 10, 1 << 10) + VALUES.tobytes())
    held = refused(path, f"{1 << 51} bytes after its header, .* its size of {path.stat().st_size} bytes rules that out")
    assert held < 1 << 20


def test_a_header_that_claims_what_a_gzip_file_could_hold_costs_only_what_it_does_hold(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=1 << 20, dtype=np.uint8).tobytes()
    path = write(tmp_path / "a.gz", header(900, 1 << 10, 1 << 10) + noise)
    assert refused(path, f"{len(noise)} came") < 8 << 20


def test_a_gzip_bomb_is_refused_after_one_byte_too_many(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", header(2, 3, 4) + bytes(64 << 20))
    assert refused(path, "24 bytes after its header, .* more came") < 1 << 20


@pytest.mark.parametrize(
    ("content", "came"),
    [
        (b"", "it begins with nothing"),
        (header(2, 3, 4)[:-1], r"begins with 00 00 08 03 and 3 sizes, but it begins with 00 00 08 03 00 00 00 02"),
        (header(24) + VALUES.tobytes(), "begins with 00 00 08 03 and 3 sizes, but it begins with 00 00 08 01"),
        (b"\0\0\x0d\x03" + bytes(100), "it begins with 00 00 0d 03"),
        (b"<html>not found</html>", "it begins with 3c 68 74 6d 6c"),
        (header(0, 28, 28), r"claims the shape \(0, 28, 28\), but its size of 16 bytes rules that out"),
    ],
)
def test_a_header_of_another_kind_is_refused(tmp_path: Path, content: bytes, came: str) -> None:
    refused(write(tmp_path / "a", content), came)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(header(2, 3, 4) + VALUES.tobytes())
    wrong_sum = whole[:-8] + bytes(4) + whole[-4:]
    wrong_code = whole[:10] + b"\xff" * 20 + whole[30:]
    for damaged in (whole[:-10], wrong_sum, wrong_code, b"\0\0\x08\x03 plain"):
        path = tmp_path / "a.gz"
        path.write_bytes(damaged)
        refused(path, r"a complete gzip file, but decompressing it failed \(.+\)")


def test_no_gzip_file_expands_beyond_the_limit_that_is_assumed() -> None:
    zeros = 16 << 20
    assert math.ceil(zeros / len(gzip.compress(bytes(zeros), compresslevel=9))) <= 1032
