from __future__ import annotations

import os
import re
from html.parser import HTMLParser

import pytest

from normlens.report.html import render, write_report
from normlens.run.reading import Measurement, Reading
from normlens.run.store import open_run

VOID = {"meta", "input", "br", "img", "link", "hr"}
HEADINGS = [
    "Verdict", "The runs", "Overview", "Did it learn?", "Are channels dying?", "Are units saturated?",
    "Do the layers' inputs drift?",
    "How steep and how ill-conditioned is the loss?",
    "How many directions of the loss are flat, and how many curve?", "Is the learning rate at the edge of stability?",
    "Are the layers' inputs ill-conditioned?", "How does the loss look around the network?",
    "Do gradients vanish or explode?", "How far does the gradient predict the loss?",
    "Do the layers chase each other?", "Do the gradients of samples and places cancel?",
    "How far are the features from batch norm's?", "How singular is the Fisher matrix?",
    "What does batch norm's Fisher vector see?", "How fast do the weights turn?",
    "Does the IC layer make neurons independent?", "Do batch norm and dropout disagree?",
    "How noisy are batch statistics, and do the running ones match?", "Do the representations collapse?",
    "Does a gain of a layer's weights reach the outputs?", "Could the targets be reached along the gradients?",
    "How unsure is the network?", "Does calibration undo noise on the weights?",
    "How exact is batch norm in integers?", "How this was measured",
]  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, the text in each, and whether every tag was closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts, self.errors = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def inside(self, tag):
        return [text.strip() for where, text in self.texts if where == tag and text.strip()]


@pytest.fixture(scope="module")
def text(four_runs):
    return render(four_runs)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_headings_are_the_questions_in_the_order_of_the_page(page):
    assert page.inside("h2") == HEADINGS
    assert page.inside("h1") == ["Are these 4 runs healthy?"]


def test_every_tag_is_closed(page):
    assert page.errors == []
    assert page.open == []


def test_the_verdict_of_every_run_stands_first_with_word_and_shape(page):
    assert page.inside("strong")[:4] == ["● healthy"] * 3 + ["✖ sick"]


def test_nothing_is_loaded_from_elsewhere(text, page):
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:")


def test_every_picture_has_words_and_every_id_is_unique(page):
    pictures = [attributes for tag, attributes in page.tags if tag in ("svg", "img")]
    assert len(pictures) == 35
    assert all(attributes.get("aria-label") or attributes.get("alt") for attributes in pictures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_link_leads_to_something(page):
    ids = {attributes.get("id") for _, attributes in page.tags}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links
    assert all(link[1:] in ids for link in links)


def test_controls_can_be_used_with_the_keyboard_and_are_labeled(page):
    tags = dict.fromkeys(tag for tag, _ in page.tags)
    assert {"button", "input", "label", "output", "details", "summary"} <= set(tags)
    labels = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    assert {attributes["id"] for tag, attributes in page.tags if tag == "input"} <= labels


def test_rows_carry_their_layer_for_the_filter(page):
    layers = {attributes["data-layer"] for tag, attributes in page.tags if tag == "tr" and "data-layer" in attributes}
    assert {"block1.relu", "block2.conv", "block3.norm"} <= layers


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(text, four_runs, tmp_path):
    assert write_report(four_runs, tmp_path / "page.html").read_bytes() == text.encode("utf-8")


@pytest.mark.slow
def test_hostile_names_are_text_and_nothing_else(hostile_runs, hostile_names, tmp_path):
    written = write_report(hostile_runs, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(written)
    assert page.errors == []
    assert len(page.inside("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", written)
    cells = page.inside("bdi")
    for kind in ("script", "math", "attribute"):
        assert hostile_names[kind] in cells
    everything = " ".join(text for _, text in page.texts)
    assert "{{ 7 * 7 }}" in everything  # a name is no template
    assert "<b>&amp;</b>" in everything


@pytest.mark.slow
def test_every_kind_of_hostile_name_may_be_the_run_itself(make_run, hostile_names):
    run = make_run(channels=2, layers=("a", "b"), steps=(0, 60))
    page = Page(render(dict.fromkeys(hostile_names.values(), run)))
    assert page.errors == []
    assert page.inside("h2") == HEADINGS
    shown = page.inside("bdi")
    for kind in ("script", "math", "attribute", "markup", "template", "long"):
        assert hostile_names[kind] in shown, kind


@pytest.mark.slow
def test_what_did_not_run_and_the_overhead_are_told(four_runs, sick_run):
    text = " ".join(text for _, text in Page(render({**four_runs, "sick": sick_run})).texts)
    assert "The lens took 1.8 s on top of 30 s of bare training: 6.0 % (budget 10 %)." in text
    assert "activation_drift starved 6 times" in text
    assert "elimination failed 2 times" in text


def test_a_run_in_which_nothing_was_measured_makes_a_page_that_says_so(empty_run):
    page = Page(render(empty_run))
    assert page.inside("strong")[0] == "▲ look here"
    assert page.inside("h2") == ["Verdict", "The runs", "Overview", "What was not measured", "How this was measured"]
    assert [text for text in page.inside("dt") if text.endswith("?")] == HEADINGS[3:-1]
    assert "Nothing was measured that could be drawn." in page.inside("p")


def test_questions_that_no_probe_answers_stand_together_behind_those_that_are(write_measurements):
    run = write_measurements([Measurement(i, "training_curve", readings=(Reading("loss", 1.0),)) for i in range(3)])
    page = Page(render(run))
    assert page.inside("h2")[3:] == ["Did it learn?", "What was not measured", "How this was measured"]
    anchors = {attributes.get("id") for _, attributes in page.tags}
    assert {"do-inputs-drift", "do-inputs-drift-method"} <= anchors  # findings about a failed probe lead there
    told = [text for text in page.inside("dd") if text.startswith("Not measured: no run holds what the probe")]
    assert len(told) == len(HEADINGS) - 5


@pytest.mark.slow
def test_a_damaged_run_is_shown_as_far_as_it_is_whole(make_run):
    run = make_run()
    raw = bytearray(run.path.read_bytes())
    found = raw.find(b"gradient_norm")
    raw[found : found + 8] = b"garbages"
    run.path.write_bytes(raw)
    page = Page(render(open_run(run.path, recover=True)))
    assert "Left out, because the file is damaged:" in page.inside("p")


def test_a_long_table_is_cut_with_a_sentence_that_says_how_to_get_all(write_measurements):
    run = write_measurements([Measurement(i, "training_curve", readings=(Reading("loss", 1.0),)) for i in range(2001)])
    page = Page(render(run))
    text = " ".join(" ".join(text for _, text in page.texts).split())
    assert "Shown are the first 2000 of 2001 rows." in text
    assert f'normlens.open_run("{run.path.name}").frame("training_curve")' in text


@pytest.mark.slow
def test_runs_may_come_alone_in_a_list_or_by_name_and_equal_names_are_told_apart(healthy_run):
    assert Page(render(healthy_run)).inside("h1") == ["Is this run healthy?"]
    names = Page(render([healthy_run, healthy_run])).inside("bdi")
    assert names[:2] == ["batch_norm, seed 0", "batch_norm, seed 0 (2)"]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a report needs runs, as open_run returns them; got str"):
        write_report("runs/bn", tmp_path / "page.html")
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_page_and_no_draft(empty_run, tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")

    def fail(source, destination):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(empty_run, target)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert target.read_text() == "old"
