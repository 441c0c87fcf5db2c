from __future__ import annotations

from normlens import catalog
from normlens.report.diagnose import diagnose, rules


def test_a_healthy_run_has_no_findings(healthy_run):
    assert diagnose(healthy_run) == []


def test_findings_come_worst_first(sick_run):
    severities = [finding.severity for finding in diagnose(sick_run)]
    assert severities == sorted(severities, key=["sick", "look", "note"].index)
    assert {"sick", "look", "note"} == set(severities)


def test_rules_are_told_by_the_first_line_of_their_files():
    assert rules()["dead_channels"] == "channels that were off for every sample of the probe batch."


def test_each_finding_knows_the_rule_that_said_it(sick_run):
    findings = diagnose(sick_run)
    assert {finding.rule for finding in findings} >= {"dead_channels", "non_finite", "probe_failed", "unfinished"}
    for finding in findings:
        assert repr(finding) in map(repr, catalog.load("normlens.report.rules", finding.rule)(sick_run))
