"""What every data set must keep; the data sets are found by walking normlens.data."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import normlens.data as package
from normlens import catalog
from normlens.data.errors import DataError
from normlens.data.images import ImageData

NAMES = catalog.names("normlens.data")
EMBEDDED = [name for name in NAMES if not inspect.signature(catalog.load("normlens.data", name)).parameters]
READERS = [name for name in NAMES if name not in EMBEDDED]


@pytest.fixture(params=EMBEDDED)
def embedded(request: pytest.FixtureRequest) -> Callable[[], ImageData]:
    """A function that returns a data set without asking for files."""
    function: Callable[[], ImageData] = catalog.load("normlens.data", request.param)
    return function


def test_the_walk_finds_data_sets_of_both_kinds() -> None:
    assert {"digits", "patches"} <= set(EMBEDDED)
    assert {"mnist", "cifar10", "cifar100"} <= set(READERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_a_function_of_nothing_or_of_a_folder(name: str) -> None:
    function = catalog.load("normlens.data", name)
    assert inspect.isfunction(function)
    assert list(inspect.signature(function).parameters) in ([], ["data_dir"])


@pytest.mark.parametrize("name", READERS)
def test_an_empty_folder_is_refused_with_the_place_to_get_the_data_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))}.* no such file; fetch .* from \w+\.\S+\.$"):
        catalog.load("normlens.data", name)(tmp_path)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_data_set_is_named_after_its_module(name: str) -> None:
    assert catalog.load("normlens.data", name)().name == name


def test_no_image_is_in_the_train_and_in_the_test_part(embedded: Callable[[], ImageData]) -> None:
    data = embedded()
    train, test = ({image.numpy().tobytes() for image in images} for images, _ in (data.train, data.test))
    assert not train & test


def test_pixels_are_float32_in_the_unit_interval_and_use_its_upper_half(embedded: Callable[[], ImageData]) -> None:
    data = embedded()
    assert data.train[0].dtype == data.test[0].dtype == torch.float32
    pixels = torch.cat([data.train[0].flatten(), data.test[0].flatten()])
    assert float(pixels.min()) >= 0.0
    assert 0.5 < float(pixels.max()) <= 1.0


def test_every_class_and_no_other_label_is_in_both_parts(embedded: Callable[[], ImageData]) -> None:
    data = embedded()
    for images, labels in (data.train, data.test):
        assert len(labels) == len(images)
        assert set(labels.tolist()) == set(range(len(data.classes)))


def test_loading_and_shuffling_again_gives_the_same_batches(embedded: Callable[[], ImageData]) -> None:
    first, second = (embedded().loader(100, seed=5) for _ in range(2))
    for _ in range(2):
        for (x1, y1), (x2, y2) in zip(first, second, strict=True):
            assert torch.equal(x1, x2)
            assert torch.equal(y1, y2)


def test_loading_leaves_the_global_random_states_alone(
    embedded: Callable[[], ImageData], global_random_states: Callable[[], str]
) -> None:
    before = global_random_states()
    for _ in embedded().loader(100, seed=5):
        pass
    assert global_random_states() == before


def test_the_index_hands_out_functions_even_after_their_modules_were_imported() -> None:
    for name in NAMES:
        importlib.import_module(f"normlens.data.{name}")
        assert callable(getattr(package, name))
        assert name in package.__all__
