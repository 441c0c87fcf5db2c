from __future__ import annotations

import pytest

from normlens.plot.collect import PANELS, gather, layer_order, named, select, with_room
from normlens.run.errors import NotRecordedError


def losses(run):
    return select(run, "training_curve", "loss")


def test_a_single_run_goes_by_the_name_in_its_header(healthy_run, write_measurements):
    assert list(named(healthy_run)) == ["batch_norm, seed 0"]
    nameless = write_measurements([])
    assert list(named(nameless)) == [nameless.name]


def test_what_is_no_run_is_refused():
    with pytest.raises(TypeError, match=r"needs a Run or a mapping .* got list"):
        named([])
    with pytest.raises(ValueError, match="at least one run; got an empty mapping"):
        named({})


def test_of_more_runs_than_there_is_room_for_the_first_stay_and_the_others_are_named(healthy_run):
    names = [f"run {number}" for number in range(PANELS + 3)]
    every = gather(dict.fromkeys(names, healthy_run), losses)
    shown = with_room(every)
    assert (list(shown.runs), shown.crowded) == (names[:PANELS], tuple(names[PANELS:]))
    assert set(shown.table["run"]) == set(names[:PANELS])
    assert shown.colors == every.colors
    assert with_room(gather({"one": healthy_run}, losses)).crowded == ()


def test_a_name_with_a_lone_surrogate_becomes_its_escape(healthy_run):
    assert list(named({"a\ud800": healthy_run})) == [r"a\ud800"]


def test_colors_go_by_position_among_all_runs_and_the_missing_are_named(healthy_run, empty_run):
    gathered = gather({"none": empty_run, "there": healthy_run}, losses)
    assert gathered.missing == ("none",)
    assert [(name, color) for name, color, _ in gathered.each()] == [("there", "#de8f05")]
    assert set(gathered.table["run"]) == {"there"}


def test_if_no_run_has_the_data_the_error_of_the_first_is_raised(empty_run):
    with pytest.raises(NotRecordedError, match=f"{empty_run.name} holds no reading of probe 'training_curve'"):
        gather({"a": empty_run, "b": empty_run}, losses)


def test_a_reading_that_is_not_there_is_named_beside_those_that_are(healthy_run):
    with pytest.raises(NotRecordedError, match=r"has read none of lambda_max; it has: loss, accuracy"):
        select(healthy_run, "training_curve", "lambda_max")


def test_layers_come_in_the_order_of_the_network_and_unknown_ones_last(make_run):
    run = make_run(layers=("z", "m", "a"))
    gathered = gather(run, lambda r: select(r, "elimination", "dead"))
    shuffled = gathered.table.sort_values("layer")
    assert layer_order(type(gathered)(shuffled, gathered.runs, (), {})) == ["z.relu", "m.relu", "a.relu"]
    headless = type(gathered)(shuffled, {}, (), {})
    assert layer_order(headless) == ["a.relu", "m.relu", "z.relu"]
