from __future__ import annotations

import math

import numpy as np

from normlens.report.rules.non_finite import non_finite
from normlens.run.reading import Measurement, Reading


def test_the_earliest_reading_is_named_and_all_are_counted(write_measurements):
    run = write_measurements([
        Measurement(5, "training_curve", readings=(Reading("loss", math.nan),)),
        Measurement(3, "activation_drift", readings=(
            Reading("mean", np.array([0.0, math.inf, math.nan]), layer="conv", dims=("channel",)),)),
    ])  # fmt: skip
    (finding,) = non_finite(run)
    assert (finding.severity, finding.probe, finding.layer, finding.step) == ("sick", "activation_drift", "conv", 3)
    assert finding.evidence["readings"] == 2  # two readings, however many numbers in them
    assert math.isinf(finding.evidence["mean"])


def test_what_the_user_logged_is_only_worth_a_look(write_measurements):
    run = write_measurements([Measurement(0, "user", readings=(Reading("test_accuracy", math.nan),))])
    assert [finding.severity for finding in non_finite(run)] == ["look"]


def test_an_offset_is_infinite_by_definition_for_a_constant_channel_but_never_nan(write_measurements):
    def run(value):
        offsets = Reading("offset", np.array([value]), layer="relu", dims=("channel",))
        return write_measurements([Measurement(0, "elimination", readings=(offsets,))])

    assert non_finite(run(-math.inf)) == []
    assert len(non_finite(run(math.nan))) == 1


def test_a_drift_without_a_value_is_no_fault_where_the_activations_are_finite(write_measurements):
    def run(mean):
        readings = (Reading("mean_shift_first", math.nan, layer="conv"), Reading("mean", mean, layer="conv"))
        return write_measurements([Measurement(0, "activation_drift", readings=readings)])

    assert non_finite(run(1.0)) == []
    assert [finding.evidence["readings"] for finding in non_finite(run(math.nan))] == [1]


def test_a_condition_number_below_the_precision_is_not_known_which_is_no_fault(write_measurements):
    def run(kappa_max):
        curve = Reading("curve", np.array([math.nan, math.nan, 2e3]), dims=("tolerance_grid",))
        readings = (curve, Reading("lambda_max", kappa_max))
        return write_measurements([Measurement(0, "condition_number", readings=readings)])

    assert non_finite(run(2.0)) == []
    (finding,) = non_finite(run(math.nan))
    assert finding.message.startswith("condition_number/lambda_max is NaN")


def test_a_number_that_a_probe_lacks_is_worth_a_look_where_loss_and_gradient_stay_finite(write_measurements):
    def severity(loss):
        curve = Measurement(0, "training_curve", readings=(Reading("loss", loss), Reading("gradient_norm", 1.0)))
        mine = Measurement(0, "mine", readings=(Reading("quotient", math.nan),))
        return [finding.severity for finding in non_finite(write_measurements([curve, mine]))]

    assert severity(1.0) == ["look"]
    assert severity(math.inf) == ["sick"]
