from __future__ import annotations

from normlens.report.rules.multi_modal import multi_modal
from support.over_time import over_time


def find(write, *share):
    apart = [3.0] * len(share)
    return multi_modal(over_time(write, "fisher_vector", "norm", multimodal=share, separation_median=apart))


def test_half_of_the_channels_at_the_end_is_noted_from_where_it_stays(write_measurements):
    (finding,) = find(write_measurements, 0.9, 0.2, 0.5, 0.6)
    assert (finding.severity, finding.layer, finding.step) == ("note", "norm", 20)
    assert finding.evidence["multimodal"] == 0.6
    assert "3 standard deviations apart" in finding.message


def test_a_few_channels_and_modes_that_went_away_are_nothing(write_measurements):
    assert find(write_measurements, 0.9, 0.49) == []
