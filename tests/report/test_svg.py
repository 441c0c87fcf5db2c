from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from normlens import plot
from normlens.plot.style import NEUTRAL
from normlens.report.svg import svg

SIZE = (6.4, 4.0)


def ids(text):
    return re.findall(r'\bid="([^"]*)"', text)


def test_equal_runs_give_equal_bytes_whatever_the_users_style(four_runs):
    plain = svg(plot.elimination, four_runs, SIZE, [])
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path", "svg.hashsalt": "other"}):
        assert svg(plot.elimination, four_runs, SIZE, []) == plain


def test_every_id_is_unique_within_and_between_pictures_and_every_reference_is_met(four_runs, healthy_run):
    one = svg(plot.training_curve, four_runs, SIZE, [])
    two = svg(plot.activation_drift, {"run": healthy_run}, SIZE, [])
    assert len({*ids(one + two)}) == len(ids(one + two))
    for text in (one, two):
        wanted = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
        assert wanted
        assert {*wanted} <= {*ids(text)}


def test_text_is_text_in_the_color_of_the_page(healthy_run):
    text = svg(plot.training_curve, {"run": healthy_run}, SIZE, [])
    root = ElementTree.fromstring(text)
    assert "optimizer steps" in {"".join(node.itertext()) for node in root.iter("text")}
    assert NEUTRAL not in text
    assert "currentColor" in text


def test_nothing_in_it_points_outside_or_styles_the_page(healthy_run):
    run = {"run": healthy_run}
    text = svg(plot.overview, run, plot.overview_size(run), [])
    assert "http" not in text
    assert "<style" not in text
    assert "<metadata" not in text


def test_the_title_is_the_alternative_text(healthy_run):
    root = ElementTree.fromstring(svg(plot.dead_channels, {"run": healthy_run}, SIZE, []))
    assert (root.get("role"), root.get("aria-label")) == ("img", "No channel is dead at step 300")


def test_a_shortened_name_has_its_whole_in_the_tooltip(make_run):
    layer = "a_very_long_name_of_a_block_that_does_not_fit_in_a_figure"
    run = make_run(layers=(layer, "short"))
    root = ElementTree.fromstring(svg(plot.elimination, {"run": run}, SIZE, [f"{layer}.relu", "short.relu"]))
    assert [node.text for node in root.iter("title")] == [f"{layer}.relu"]


@pytest.mark.parametrize("figure", [pytest.param("overview", marks=pytest.mark.slow), "elimination"])
def test_hostile_names_stay_text(figure, hostile_runs, hostile_names):
    size = plot.overview_size(hostile_runs) if figure == "overview" else (10, 10)
    text = svg(getattr(plot, figure), hostile_runs, size, hostile_names.values())
    root = ElementTree.fromstring(text)
    assert not {"script", "b"} & {node.tag for node in root.iter()}
    assert not any(name.startswith("on") for node in root.iter() for name in node.attrib)
    assert r"w$_{$" in text
