from __future__ import annotations

from pathlib import Path

import pytest

from normlens.data.errors import DataError


def test_the_message_names_the_file_what_must_hold_what_came_and_where_to_get_it() -> None:
    error = DataError.about(Path("a/b.bin"), must="seven bytes", came="it has six", published="example.org/data")
    assert (
        str(error)
        == f"{Path('a/b.bin')} must be seven bytes, but it has six; fetch the data set from example.org/data."
    )


def test_a_data_error_is_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match="must be there"):
        raise DataError.about(Path("x"), must="there", came="it is not", published="example.org")
