from __future__ import annotations

import pytest

from normlens.report.rules.ill_conditioned_inputs import ill_conditioned_inputs
from support.over_time import over_time


def find(write, raw, centered):
    kappa = {"kappa_raw": raw, "kappa_centered": centered, "kappa_normalized": [5.0] * len(raw)}
    return ill_conditioned_inputs(over_time(write, "activation_condition", "fc", **kappa))


def test_a_gain_of_ten_by_centering_alone_is_noted(write_measurements):
    (finding,) = find(write_measurements, [100.0, 100.0, 900.0], [50.0, 50.0, 60.0])
    assert (finding.severity, finding.layer, finding.step) == ("note", "fc", 20)
    assert finding.evidence["gain_of_centering"] == pytest.approx(15)


def test_ill_conditioned_inputs_that_are_centered_are_another_matter(write_measurements):
    assert find(write_measurements, [1e5], [9e4]) == []


def test_the_beginning_counts_as_well_since_units_die_of_such_inputs_but_not_what_is_between(write_measurements):
    assert [f.step for f in find(write_measurements, [900.0, 100.0, 100.0], [60.0, 60.0, 60.0])] == [0]
    assert find(write_measurements, [100.0, 900.0, 100.0], [60.0, 60.0, 60.0]) == []
