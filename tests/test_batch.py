from __future__ import annotations

from collections import namedtuple

import torch

from normlens.batch import batch_size, fingerprint, first_samples, is_one_batch, move_batch, split_batch, tensors_of

x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2])
Pair = namedtuple("Pair", ["inputs", "targets"])


def test_a_pair_is_divided_and_anything_else_is_both_inputs_and_targets():
    assert split_batch((x, y)) == (x, y)
    batch = {"pixels": x}
    assert split_batch(batch) == (batch, batch)


def test_one_batch_is_told_from_a_collection_of_them():
    assert all(map(is_one_batch, [x, (x, y), [x, y], {"a": x}, ((x, x), y), ({"a": x}, y)]))
    assert not any(map(is_one_batch, [[(x, y), (x, y)], [{"a": x}, {"a": x}], iter([])]))


def test_tensors_are_found_however_nested_and_the_first_one_counts_the_samples():
    nested = ({"a": [x, "text"]}, (y,))
    assert [t.data_ptr() for t in tensors_of(nested)] == [x.data_ptr(), y.data_ptr()]
    assert batch_size(nested) == 3


def test_moving_keeps_the_structure():
    moved = move_batch(Pair(x, {"t": [y, "text"]}), torch.device("meta"))
    assert isinstance(moved, Pair)
    assert moved.inputs.device.type == moved.targets["t"][0].device.type == "meta"
    assert moved.targets["t"][1] == "text"


def test_a_fingerprint_sees_values_order_shape_and_dtype():
    seen = {fingerprint(b) for b in [(x, y), (x, y.flip(0)), (x.reshape(2, 3), y), (x.double(), y), (x + 1e-3, y)]}
    assert len(seen) == 5
    assert fingerprint((x, y)) == fingerprint((x.clone(), y.clone()))


def test_the_first_samples_in_float64_leave_class_indices_alone():
    inputs, targets = first_samples((x, y), 2, double=True)
    assert inputs.dtype == torch.float64
    assert targets.dtype == torch.int64
    assert (len(inputs), len(targets)) == (2, 2)
