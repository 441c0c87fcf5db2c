from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch

from normlens.run.errors import NotRecordedError, RunCorruptError, RunError, RunExistsError
from normlens.run.reading import Measurement, Reading
from normlens.run.recorder import Recorder
from normlens.run.store import open_run


def measured(step, value=None, probe="p", status="ok"):
    readings = (Reading("w", np.arange(2.0) + (step if value is None else value), layer="a", dims=("unit",)),)
    return Measurement(step, probe, status, readings=readings if status == "ok" else ())


def values(readings):
    return {key: reading.array.tolist() for key, reading in readings.items()}


def test_a_probe_sees_its_first_and_last_success_and_nothing_of_others(tmp_path):
    recorder = Recorder(tmp_path / "x", {})
    assert (values(recorder.previous("p").first), values(recorder.previous("p").last)) == ({}, {})
    for m in (measured(3), measured(4, probe="q"), measured(5), measured(6), measured(7, status="failed")):
        recorder.write([m])
    previous = recorder.previous("p")
    assert values(previous.first) == {("a", "w"): [3.0, 4.0]}
    assert values(previous.last) == {("a", "w"): [6.0, 7.0]}
    assert values(previous.at(5)) == {("a", "w"): [5.0, 6.0]}
    recorder.close()


def test_a_reading_that_is_not_stored_is_seen_by_the_next_measurement_alone(tmp_path):
    recorder = Recorder(tmp_path / "x", {})
    for step in (1, 2):
        kept, passing = Reading("w", 1.0 + step), Reading("v", np.full(3, step), dims=("n",), stored=False)
        recorder.write([Measurement(step, "p", readings=(kept, passing))])
    previous = recorder.previous("p")
    assert values(previous.last) == {("", "w"): 3.0, ("", "v"): [2.0, 2.0, 2.0]}
    assert values(previous.first) == {("", "w"): 2.0}
    assert values(previous.at(2)) == {("", "w"): 3.0}
    recorder.close()
    assert [r.name for r in open_run(tmp_path / "x").readings("p", 2)] == ["w"]
    resumed = Recorder(tmp_path / "x", {}, resume=True, first_step=3)
    assert values(resumed.previous("p").last) == {("", "w"): 3.0}
    resumed.close()


@pytest.mark.parametrize("step", [0, 7, 99])
def test_asking_for_a_step_without_success_is_an_error(tmp_path, step):
    recorder = Recorder(tmp_path / "x", {})
    recorder.write([measured(3), measured(7, status="failed")])
    with pytest.raises(NotRecordedError, match=rf"'p' was not measured at step {step}; steps: \[3\]"):
        recorder.previous("p").at(step)
    recorder.close()


def test_what_was_read_before_does_not_change_with_the_model(tmp_path):
    weight = torch.ones(3)
    recorder = Recorder(tmp_path / "x", {})
    recorder.write([Measurement(0, "p", readings=(Reading("w", weight.numpy(), dims=("unit",)),))])
    weight += 1
    previous = recorder.previous("p")
    assert values(previous.first) == values(previous.last) == values(previous.at(0)) == {("", "w"): [1.0, 1.0, 1.0]}
    torch.from_numpy(previous.last["", "w"].array)  # as probes do; a read-only array would warn
    recorder.close()


@pytest.mark.parametrize("first_step", [4, 6, 9])
def test_a_resumed_recorder_remembers_what_an_uninterrupted_one_would(tmp_path, first_step):
    whole, halves = Recorder(tmp_path / "whole", {}), Recorder(tmp_path / "halves", {})
    for step in range(2, 8):
        halves.write([measured(step), measured(step, status="failed", probe="q")])
        if step < first_step:
            whole.write([measured(step), measured(step, status="failed", probe="q")])
    halves.close()
    resumed = Recorder(tmp_path / "halves", {}, resume=True, first_step=first_step)
    assert resumed.first_step == first_step
    for probe in ("p", "q"):
        ours, theirs = resumed.previous(probe), whole.previous(probe)
        assert (values(ours.first), values(ours.last)) == (values(theirs.first), values(theirs.last))
    for recorder in (whole, resumed):
        recorder.close()


def test_a_resumed_recorder_counts_from_the_last_recorded_step_unless_told(tmp_path):
    recorder = Recorder(tmp_path / "x", {})
    assert recorder.first_step == 0
    recorder.write([measured(2), measured(11)])
    recorder.close()
    resumed = Recorder(tmp_path / "x", {}, resume=True)
    assert resumed.first_step == 11
    resumed.close()
    assert [s["first_step"] for s in open_run(tmp_path / "x").sessions] == [0, 11]


def test_resuming_what_is_not_there_begins_it(tmp_path):
    recorder = Recorder(tmp_path / "x", {"seed": 5}, resume=True)
    recorder.write([measured(1)])
    recorder.close()
    assert open_run(tmp_path / "x").header["seed"] == 5


def test_a_file_that_is_there_or_damaged_stops_the_recorder_before_training(tmp_path):
    Recorder(tmp_path / "x", {}).close()
    with pytest.raises(RunExistsError, match="holds a run already"):
        Recorder(tmp_path / "x", {})
    raw = (tmp_path / "x.sqlite").read_bytes()
    (tmp_path / "x.sqlite").write_bytes(raw[:-4096])
    with pytest.raises(RunCorruptError, match="damaged"):
        Recorder(tmp_path / "x", {}, resume=True)


@pytest.mark.parametrize("fault", ["folder", "other writer"])
def test_a_file_that_cannot_be_written_warns_once_and_counts_what_is_lost(tmp_path, fault):
    recorder = Recorder(tmp_path / "runs" / "x", {})
    recorder.write([measured(1)])
    if fault == "folder":
        shutil.rmtree(tmp_path / "runs")
    else:
        Recorder(tmp_path / "runs" / "x", {}, resume=True, first_step=2).close()
    with pytest.warns(UserWarning, match=r"normlens: .*\. The training goes on; measurements are lost") as caught:
        for step in range(2, 5):
            recorder.write([measured(step), measured(step, probe="q")])
    assert len(caught) == 1
    assert values(recorder.previous("p").last) == {("a", "w"): [1.0, 2.0]}  # what is lost was never read
    with pytest.warns(UserWarning, match=r"normlens: 6 measurements could not be written to .*x\.sqlite"):
        recorder.close()


def test_a_recorder_that_was_asked_to_raise_does(tmp_path):
    recorder = Recorder(tmp_path / "runs" / "x", {}, raising=True)
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(RunError, match="cannot write the run"):
        recorder.write([measured(1)])
    recorder.close()


def test_a_healthy_recorder_leaves_one_file_and_no_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder = Recorder(tmp_path / "x", {"seed": 1})
        recorder.write([measured(1)])
        recorder.close()
        recorder.close()
    assert [p.name for p in tmp_path.iterdir()] == ["x.sqlite"]
    assert recorder.path == tmp_path / "x.sqlite"
