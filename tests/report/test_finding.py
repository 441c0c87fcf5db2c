from __future__ import annotations

import math

import pytest

from normlens.report.finding import Finding, Findings


def test_sorting_puts_the_worst_first_and_of_equals_the_earliest():
    made = [
        Finding("note", "p", "", 0, "n"), Finding("sick", "p", "", 9, "late"), Finding("look", "p", "", None, "whole"),
        Finding("look", "p", "", 3, "l"), Finding("sick", "p", "", 2, "early"),
    ]  # fmt: skip
    assert [finding.message for finding in sorted(made)] == ["early", "late", "l", "whole", "n"]


def test_an_unknown_severity_is_refused():
    with pytest.raises(ValueError, match="severity must be one of sick, look, note; got 'bad'"):
        Finding("bad", "p", "", 0, "m")


def test_numbers_carry_error_and_threshold():
    finding = Finding("look", "p", "", 0, "m", {"loss": 2.5, "error": 0.1, "threshold": 2.0, "best": 0.25})
    assert finding.numbers == "loss 2.5 ± 0.1 (threshold 2), best 0.25"
    assert Finding("sick", "p", "", 0, "m", {"loss": math.nan, "threshold": 2.0}).numbers == "loss NaN (must be finite)"
    assert Finding("note", "p", "", 0, "m").numbers == ""


def test_html_escapes_whatever_a_run_is_named(hostile_names):
    for name in hostile_names.values():
        shown = Findings([Finding("sick", "p", name, 1, name, {"x": 1.0}, name)])._repr_html_()
        assert not any(part in shown for part in ("<script", "\x00", "\u202e", "<b>&amp;</b>", '" onload'))
        shown.encode("utf-8")


def test_severity_is_told_by_shape_and_word():
    assert str(Finding("sick", "p", "relu", 3, "Dead.", {}, "Fix.")) == "✖ sick [relu step 3]: Dead. Fix."
    assert str(Findings()) == "nothing found"
    assert "nothing found" in Findings()._repr_html_()
