from __future__ import annotations

import math

import pytest

from normlens.report.questions.how_noisy_are_batch_statistics import how_noisy_are_batch_statistics
from normlens.run.reading import Measurement, Reading

WHOLE = {"statistic_error": 0.25, "effective_values": 16.0, "values_per_channel": 64.0, "std_noise": 1.5,
         "running_mean_gap": 0.5, "running_log_variance_gap": math.log(2), "running_gap_floor": 0.03}  # fmt: skip


@pytest.fixture
def ask(write_measurements):
    def ask(loss_gap=(0.1, 0.01), **layers):
        readings = [Reading("layers", float(len(layers)))]
        if loss_gap:
            readings.append(Reading("loss_gap", loss_gap[0], error=loss_gap[1]))
        for layer, values in layers.items():
            for name, value in values.items():
                readings.append(Reading(name, value, error=0.01 if "error" in name else math.nan, layer=layer, n=32))
        return write_measurements([Measurement(30, "batch_noise", readings=tuple(readings))])

    return ask


def answer(run):
    return how_noisy_are_batch_statistics({"run": run}).answers["run"]


def test_the_answer_gives_noise_law_gap_and_loss(ask):
    assert answer(ask(a=WHOLE, b={**WHOLE, "statistic_error": 0.1, "std_noise": 1.0})) == (
        "At step 30 a batch's mean is off by at most 25 ± 1 % of σ (a, where 16 of 64 values per channel count); their "
        "deviations scatter 1 to 1.5 times as the law for independent values says; running means are off by at most "
        "0.5 σ (a, where sampling alone makes up to 0.03), their variances by a factor of 2; with the running ones the "
        "loss is 0.1 ± 0.01 higher."
    )


def test_a_loss_gap_within_its_error_is_said_to_be_none(ask):
    assert answer(ask((0.01, 0.01), a=WHOLE)).endswith("; the loss is the same with either, to its error.")
    assert answer(ask((-0.1, math.nan), a=WHOLE)).endswith("; with the running ones the loss is 0.1 lower.")


def test_a_layer_without_running_statistics_has_noise_alone(ask):
    plain = {name: value for name, value in WHOLE.items() if not name.startswith("running")}
    words = answer(ask(None, a={**plain, "std_noise": math.nan}))
    assert words == (
        "At step 30 a batch's mean is off by at most 25 ± 1 % of σ (a, where 16 of 64 values per channel count)."
    )


def test_a_model_without_batch_norm_is_said_to_have_none(ask):
    alone = how_noisy_are_batch_statistics({"run": ask()})
    assert alone.answers == {"run": "The model has no layer that normalizes by the batch."}
    assert not alone.figures
    beside = how_noisy_are_batch_statistics({"none": ask(), "with": ask(a=WHOLE)})
    assert set(beside.answers) == {"none", "with"}


def test_noise_that_is_not_finite_is_said(ask):
    assert answer(ask(None, a={"statistic_error": math.nan})) == "The noise is not finite in any of 1 layers."


def test_without_the_probe_it_is_not_measured(empty_run):
    question = how_noisy_are_batch_statistics({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe batch_noise reads")
