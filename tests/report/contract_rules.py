"""Every rule of report/rules, found by walking the package: it fires on what it is for, and else is silent."""

from __future__ import annotations

import pytest

from normlens import catalog
from normlens.report.diagnose import diagnose, rules
from normlens.report.finding import Finding
from normlens.run.reading import Measurement, Reading
from normlens.run.store import open_run
from support.over_time import measurements, over_time

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

    def over(probe, layer="", **values):
        return lambda: over_time(write_measurements, probe, layer, **values)

    def too_low():
        edge = measurements("edge_of_stability", ratio=[1e-5, 1e-5], threshold=[2e4, 2e4])
        return write_measurements(edge + measurements("training_curve", loss=[2.3, 2.2], learning_rate=[1e-4, 1e-4]))

    def vanishing():
        readings = tuple(Reading("energy", 100.0**i, layer=f"layer{i}") for i in range(3))
        return write_measurements([Measurement(0, "gradient_flow", readings=readings)])

    kappa = {"kappa_raw": [900.0], "kappa_centered": [9.0], "kappa_normalized": [5.0]}
    gap = {"running_mean_gap": [0.9], "running_log_variance_gap": [0.1], "running_gap_floor": [0.05]}
    shift = {"shift": [2.0, 2.0], "eval_to_running": [0.5, 0.5], "dropouts_before": [1.0, 1.0]}
    growth = {"norm": [1.0, 4.0], "invariance": [1e-6, 1e-6], "effective_rate": [0.1, 0.006]}
    flat = {"saturated": [0.9], "saturated_units": [3.0], "slope": [0.01]}
    return {
        "above_the_edge": over("edge_of_stability", ratio=[3.0, 0.5]),
        "collapsed": over("rank_collapse", "relu", effective_rank_centered=[1.2]),
        "damaged": damaged,
        "dead_channels": lambda: make_run(dead={"block2": 9}),
        "drift": over("activation_drift", "fc", ks_previous=[0.3, 0.1, 0.1, 0.5], ks_floor=[0.05] * 4),
        "gradients_at_init": vanishing,
        "ill_conditioned_inputs": over("activation_condition", "fc", **kappa),
        "margin_shrinking": over("elimination", "relu", margin=[0.0, -1.0, -1.5]),
        "multi_modal": over("fisher_vector", "norm", multimodal=[0.8], separation_median=[3.0]),
        "norm_runaway": over("weight_dynamics", "conv", **growth),
        "rate_too_low": too_low,
        "saturated": over("saturation", "tanh", **flat),
        "stale_statistics": over("batch_noise", "norm", **gap),
        "tiny_batches": over("batch_noise", "norm", statistic_error=[0.7], effective_values=[2.0], batch_size=[2.0]),
        "undecided": over("condition_number", kappa_lower=[1e3]),
        "variance_shift": over("variance_shift", "norm", **shift),
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


@pytest.mark.slow
def test_diagnose_asks_every_rule(made_for):
    for name, make in made_for.items():
        run = make()
        assert {*map(repr, ask(name, run))} <= {*map(repr, diagnose(run))}
    assert list(rules()) == RULES
