from __future__ import annotations

import pytest
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from normlens.plot.style import NEUTRAL, clean, label, number, palette, shorten, title


def contrast(color: str, ground: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(name: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(name)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(color), luminance(ground)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["white", "black"])
def test_neutral_text_has_the_contrast_of_readable_text_on(ground):
    assert contrast(NEUTRAL, ground) >= 4.5


def test_the_palette_is_seaborns_colorblind_one_and_repeats():
    assert palette(3) == ["#0173b2", "#de8f05", "#029e73"]
    assert palette(12)[10:] == palette(2)
    assert palette(0) == []


@pytest.mark.parametrize("kind", ["script", "math", "nul", "surrogate", "right_to_left", "long", "template"])
def test_a_label_is_short_printable_and_never_mathematics(kind, hostile_names):
    text = label(hostile_names[kind])
    assert len(text.replace(r"\$", "$")) <= 40
    assert not is_math_text(text)
    text.encode("utf-8")
    assert clean(text) == text


def test_a_label_with_an_escaped_dollar_is_still_not_mathematics():
    for name in (r"\$x\$", "$$", r"\\$a$", "$" * 50):
        assert not is_math_text(label(name)), name


def test_shortening_cuts_the_middle_and_keeps_both_ends():
    assert shorten("a" * 30 + "b" * 30, 11) == "aaaaa…bbbbb"
    assert shorten("short", 11) == "short"
    assert [len(shorten("x" * 99, limit)) for limit in (12, 13, 40)] == [12, 13, 40]


def test_numbers_are_short_and_say_what_is_not_finite():
    assert [number(v) for v in (0.12345, -2.0, float("nan"), float("-inf"))] == ["0.123", "−2", "NaN", "−inf"]


def test_a_title_never_breaks_a_name_between_an_escape_and_its_dollar():
    ax = Figure().add_subplot()
    title(ax, "x" * 20 + " " + label("$" * 40), width=30)
    assert ax.get_title(loc="left").split("\n") == ["x" * 20, r"\$" * 40]
