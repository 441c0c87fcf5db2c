from __future__ import annotations

import pytest

from normlens.report.finding import Finding
from normlens.report.verdict import verdict


@pytest.mark.parametrize(
    ("severities", "word"),
    [((), "healthy"), (("note",), "healthy"), (("note", "look"), "look here"), (("look", "sick", "note"), "sick")],
)
def test_the_worst_finding_decides(severities, word):
    assert verdict([Finding(severity, "p", "", 0, "m") for severity in severities]) == word
