from __future__ import annotations

from normlens.report.diagnose import diagnose, rules


def test_a_healthy_run_has_no_findings(healthy_run):
    assert diagnose(healthy_run) == []


def test_findings_come_worst_first(sick_run):
    severities = [finding.severity for finding in diagnose(sick_run)]
    assert severities == sorted(severities, key=["sick", "look", "note"].index)
    assert {"sick", "look", "note"} == set(severities)


def test_rules_are_told_by_the_first_line_of_their_files():
    assert rules()["dead_channels"] == "channels that were off for every sample of the probe batch."
