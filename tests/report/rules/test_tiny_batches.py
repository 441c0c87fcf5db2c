from __future__ import annotations

import pytest

from normlens.report.rules.tiny_batches import tiny_batches
from support.over_time import measurements


def layer(name, values):
    return measurements("batch_noise", name, statistic_error=[values**-0.5], effective_values=[values], batch_size=[2])


def test_sixteen_values_are_enough_and_fifteen_are_not(write_measurements):
    assert tiny_batches(write_measurements(layer("norm", 16.0))) == []
    (finding,) = tiny_batches(write_measurements(layer("norm", 15.0)))
    assert (finding.severity, finding.layer) == ("look", "norm")
    assert finding.evidence["statistic_error"] == pytest.approx(15**-0.5)


def test_the_noisiest_of_all_layers_speaks_for_them(write_measurements):
    (finding,) = tiny_batches(write_measurements([*layer("a", 8.0), *layer("b", 2.0), *layer("c", 100.0)]))
    assert finding.layer == "b"
    assert "Batches of 2 samples" in finding.message
    assert finding.message.endswith("so in 2 layers.")
