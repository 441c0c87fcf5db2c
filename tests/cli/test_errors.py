from __future__ import annotations

from normlens.cli import errors


def test_the_exit_codes_are_those_that_the_readme_promises():
    codes = (errors.OK, errors.FAILURE, errors.USAGE, errors.NO_RUN, errors.UNSUPPORTED, errors.INTERRUPTED)
    assert codes == (0, 1, 2, 3, 4, 130)
