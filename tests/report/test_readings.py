from __future__ import annotations

import math

import pandas as pd
import pytest

from normlens.report.readings import by_layer, history, latest, rows, scalar, since


def test_what_was_not_recorded_is_empty_and_not_an_error(healthy_run):
    assert rows(healthy_run, "nowhere").empty
    assert math.isnan(scalar(healthy_run, "nowhere", "x"))
    assert latest(rows(healthy_run, "nowhere")).empty


def test_rows_are_those_of_the_names_and_latest_those_of_the_last_step(healthy_run):
    found = latest(rows(healthy_run, "training_curve", "loss"))
    assert found["step"].tolist() == [300]
    assert scalar(healthy_run, "training_curve", "loss") == found["value"].iloc[0]


@pytest.mark.parametrize(("flags", "step"), [((1, 1), 0), ((0, 1), 10), ((1, 0, 1, 1), 20)])
def test_since_is_the_start_of_the_last_stretch(flags, step):
    assert since(range(0, 10 * len(flags), 10), map(bool, flags)) == step


def test_since_refuses_what_does_not_hold_at_the_end():
    with pytest.raises(ValueError, match="the last flag must be true"):
        since([0, 1], [True, False])


def test_layers_come_in_the_order_of_their_appearance_and_histories_in_that_of_their_steps():
    rows_of = [("b", 10, "x", 2.0), ("a", 0, "x", 3.0), ("b", 0, "x", 1.0), ("b", 10, "y", 9.0)]
    frame = pd.DataFrame(rows_of, columns=["layer", "step", "name", "value"])
    parts = dict(by_layer(frame))
    assert list(parts) == ["b", "a"]
    assert history(parts["b"], "x")["value"].tolist() == [1.0, 2.0]
    assert history(parts["b"], "x").index.tolist() == [0, 1]
    assert history(parts["a"], "y").empty
