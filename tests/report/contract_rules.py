"""Every rule of report/rules, found by walking the package: it fires on what it is for, and else is silent."""

from __future__ import annotations

import pytest

from normlens import catalog
from normlens.report.diagnose import diagnose, rules
from normlens.report.finding import Finding
from normlens.run.reading import Measurement, Reading
from normlens.run.store import open_run

RULES = catalog.names("normlens.report.rules")


@pytest.fixture(params=RULES)
def name(request):
    return request.param


@pytest.fixture
def made_for(make_run, write_measurements, empty_run):
    """For each rule a function that makes a run in which it must fire."""

    def damaged():
        run = make_run()
        raw = bytearray(run.path.read_bytes())
        found = raw.find(b"gradient_norm")
        raw[found : found + 8] = b"garbages"
        run.path.write_bytes(raw)
        return open_run(run.path, recover=True)

    def near_dead():
        return make_run(near_dead=8)

    return {
        "damaged": damaged,
        "dead_channels": lambda: make_run(dead={"block2": 9}),
        "diverged": lambda: make_run(final_loss=5.0),
        "near_dead": near_dead,
        "non_finite": lambda: make_run(nan_from=180),
        "nothing_measured": lambda: empty_run,
        "probe_failed": lambda: make_run(failed=2),
        "probe_starved": lambda: make_run(starved="activation_drift"),
        "unfinished": lambda: make_run(closed=False),
    }


def ask(name, run):
    return catalog.load("normlens.report.rules", name)(run)


def test_a_rule_fires_on_a_run_made_for_it(name, made_for):
    assert name in made_for, f"write in this file a run in which the rule {name} must fire"
    findings = ask(name, made_for[name]())
    assert findings
    for finding in findings:
        assert isinstance(finding, Finding)
        assert finding.message.endswith(".")
        assert finding.advice.endswith(".")
        assert finding.evidence or name == "unfinished"


def test_a_rule_is_silent_on_a_healthy_run(name, healthy_run):
    assert ask(name, healthy_run) == []


def test_a_rule_copes_with_a_run_in_which_nothing_was_measured(name, write_measurements):
    for run in (write_measurements([]), write_measurements([Measurement(0, "mine", readings=(Reading("x", 1.0),))])):
        ask(name, run)


def test_diagnose_asks_every_rule(made_for):
    for name, make in made_for.items():
        run = make()
        assert {*map(repr, ask(name, run))} <= {*map(repr, diagnose(run))}
    assert list(rules()) == RULES
