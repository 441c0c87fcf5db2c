from __future__ import annotations

import pytest

from normlens.report.provenance import provenance
from normlens.run.reading import Measurement, Reading
from normlens.run.store import open_run
from normlens.run.writer import RunWriter


def test_headers_are_flattened_and_layers_counted(healthy_run):
    facts = dict(provenance(healthy_run).facts)
    assert facts["machine.cores"] == "2"
    assert facts["config.optimizer"] == "SGD(lr=0.05, momentum=0.9)"
    assert facts["layers"] == "10, in network order"
    assert facts["budget"] == "0.1 of the training's time"


def test_what_did_not_run_is_told_with_steps_and_reason(sick_run, four_runs):
    assert provenance(sick_run).absent == (
        "elimination failed 2 times, at steps 60, 120: ValueError: no layer matched",
    )
    (starved,) = provenance(four_runs["none"]).absent
    assert starved.startswith("activation_drift starved 6 times, at steps 0, 60")


def test_what_ran_is_told_with_mode_and_cost(healthy_run):
    assert "training_curve: 6 measurements, steps 0 to 300, mode eval, 0.6 s in all" in provenance(healthy_run).measured


def test_every_session_is_listed(tmp_path):
    for first in (0, 40):
        with RunWriter(tmp_path / "run", {"started": "then"}, resume=first > 0, first_step=first):
            pass
    assert provenance(open_run(tmp_path / "run")).sessions == (
        "session 1: from step 0, started then", "session 2: from step 40, started then",
    )  # fmt: skip


@pytest.mark.parametrize(
    "header", [{}, {"machine": "one", "layers": 3, "probes": [1]}, {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}]
)
def test_a_header_of_any_shape_is_no_error(write_measurements, header):
    dict(provenance(write_measurements([], header)).facts)


def test_steps_at_which_a_probe_had_nothing_to_say_are_not_counted(write_measurements):
    reading = (Reading("center", 1.0),)
    records = [Measurement(step, "loss_surface", readings=reading if step == 20 else ()) for step in (0, 10, 20)]
    assert provenance(write_measurements(records)).measured == (
        "loss_surface: 1 measurements, steps 20 to 20, 0 s in all",
    )
