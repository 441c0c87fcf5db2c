"""``diagnose`` names planted faults and has nothing against healthy runs; benchmarks/fault_zoo.py has all seeds."""

from __future__ import annotations

import pytest

from faults.faults import FAULTS
from faults.healthy import HEALTHY
from faults.patient import HELD_OUT, SEEN
from faults.runs import watch
from normlens.report.diagnose import diagnose, rules

NETWORKS = [("mlp", 0), ("mlp", 1), ("cnn", 0)]


def test_there_are_enough_of_them_and_every_rule_that_is_planted_for_exists():
    assert len({fault.rule for fault in FAULTS}) >= 14
    assert {fault.rule for fault in FAULTS} <= set(rules())
    assert len(HEALTHY) == 10
    assert not {*SEEN} & {*HELD_OUT}


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "seed"), NETWORKS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_planted_fault_is_named(fault, architecture, seed, tmp_path):
    made = fault.plant(architecture, seed)
    assert made is not None
    findings = diagnose(watch(made, tmp_path / "run.sqlite", seed))
    assert fault.is_named(findings), str(findings)


@pytest.mark.slow
@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda healthy: healthy.name.replace(" ", "_"))
def test_a_healthy_run_is_called_healthy(healthy, tmp_path):
    findings = diagnose(watch(healthy.make(0), tmp_path / "run.sqlite", 0))
    assert [finding for finding in findings if finding.severity != "note"] == []
