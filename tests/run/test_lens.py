from __future__ import annotations

import copy
import io
import pickle
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from normlens.probes import ActivationDrift, TrainingCurve
from normlens.run.errors import RunError, RunExistsError
from normlens.run.lens import Lens
from normlens.run.schedule import at, every
from normlens.run.store import open_run
from normlens.typing import Schedule
from support.networks import batch, conv_batch_norm, mlp
from support.probes import Fails, Index, Sleeps, lens, loss_function


def value(run, probe: str, name: str) -> dict[int, float]:
    frame = run.frame(probe)
    return frame[frame["name"] == name].set_index("step")["value"].to_dict()


def test_it_measures_before_training_and_then_at_the_steps_of_the_schedule(tmp_path):
    with lens(tmp_path, [Index()], every=at(2, 3) | every(5)) as watched:
        for _ in range(11):
            watched.step()
    assert value(open_run(tmp_path / "run"), "index", "index") == {s: float(s) for s in (0, 2, 3, 5, 10)}


def test_a_probe_is_given_its_first_and_its_last_readings_and_any_step(tmp_path):
    with lens(tmp_path, [Index()], every=2) as watched:
        for _ in range(6):
            watched.step()
    run = open_run(tmp_path / "run")
    assert value(run, "index", "first") == {2: 0.0, 4: 0.0, 6: 0.0}
    assert value(run, "index", "last") == value(run, "index", "at") == {2: 0.0, 4: 2.0, 6: 4.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_recorded_as_it_is(bad, tmp_path):
    with lens(tmp_path, [Index(), TrainingCurve()], every=1) as watched:
        watched.step(loss=torch.tensor(bad))
    run = open_run(tmp_path / "run")
    np.testing.assert_equal(value(run, "training_curve", "batch_loss"), {1: bad})
    np.testing.assert_equal(value(run, "index", "loss")[1], bad)


def test_a_failing_probe_warns_once_is_recorded_each_time_and_stops_no_other_probe(tmp_path):
    watched = lens(tmp_path, [Fails(), Index()], every=1)
    with pytest.warns(RuntimeWarning, match="probe 'fails' failed at step 0: ValueError: what a pity") as caught:
        watched.start()
        for _ in range(3):
            watched.step()
        watched.close()
    assert len(caught) == 1
    failed = [m for m in watched.run.measurements if m.probe == "fails"]
    assert [m.step for m in failed] == [0, 1, 2, 3]
    assert all(m.status == "failed" and m.message.startswith("ValueError: what a pity (probes.py:") for m in failed)
    assert watched.run.steps("index") == [0, 1, 2, 3]


def test_on_error_raise_records_the_failure_and_raises_it(tmp_path):
    watched = lens(tmp_path, [Index(), Fails()], every=1, on_error="raise")
    with pytest.raises(ValueError, match="what a pity"):
        watched.start()
    assert [(m.probe, m.status) for m in watched.run.measurements] == [("index", "ok"), ("fails", "failed")]


def test_an_interrupt_within_a_probe_passes_and_what_was_measured_before_it_is_kept(tmp_path):
    @dataclass(frozen=True)
    class Interrupted:
        def cost(self, step):
            return 1.0

        def __call__(self, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), lens(tmp_path, [Index(), Interrupted()], every=1):
        pass
    run = open_run(tmp_path / "run")
    assert run.steps("index") == [0]
    assert [p.name for p in tmp_path.iterdir()] == ["run.sqlite"]


@pytest.mark.parametrize(("min_runs", "steps"), [(0, []), (1, [0]), (2, [0, 7])])
def test_min_runs_measures_the_first_and_the_last_step_whatever_schedule_and_budget_say(min_runs, steps, tmp_path):
    probe = Sleeps(0.001, prior=1e9)
    with lens(tmp_path, [probe], every=3, budget=1e-6, min_runs=min_runs) as watched:
        for _ in range(7):
            watched.step()
    assert open_run(tmp_path / "run").steps("sleeps") == steps


def test_the_summary_adds_up_the_time_of_all_measurements(tmp_path):
    with lens(tmp_path, [Sleeps(0.02)], every=1) as watched:
        for _ in range(3):
            time.sleep(0.03)
            watched.step()
    readings = {r.name: r.value for r in watched.run.readings("lens", 3)}
    assert readings["lens_seconds"] >= sum(m.seconds for m in watched.run.measurements if m.probe == "sleeps") >= 0.08
    assert readings["bare_seconds"] >= 0.09
    assert readings["overhead"] == pytest.approx(readings["lens_seconds"] / readings["bare_seconds"], rel=0.05)


@pytest.mark.parametrize("steps", [4, 5], ids=["ends_at_a_due_step", "ends_before_one"])
def test_the_update_is_what_the_optimizer_really_did(tmp_path, steps):
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lens(tmp_path, [TrainingCurve()], model, every=2, optimizer=optimizer, min_runs=2) as watched:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            if step == 4:
                expected = 0.1 * torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm().item()
            optimizer.step()
            watched.step()
    measured = value(watched.run, "training_curve", "update_norm")
    assert list(measured) == [2, 4]
    assert measured[4] == pytest.approx(expected, rel=1e-4)  # the difference of float32 parameters near 0.1
    assert value(watched.run, "training_curve", "learning_rate")[4] == 0.1


def test_resume_continues_from_a_step_and_drift_is_still_against_the_very_first(tmp_path):
    model = conv_batch_norm()
    with lens(tmp_path, [ActivationDrift(), Index()], model, every=1) as first:
        for _ in range(5):
            first.step()
    with lens(tmp_path, [ActivationDrift(), Index()], model, every=1, resume=True, first_step=3) as second:
        assert second.index == 3
        second.step()
    assert second.run.steps("index") == [0, 1, 2, 3, 4]
    assert value(second.run, "index", "first")[4] == 0.0
    assert value(second.run, "index", "last")[3] == 2.0
    assert len(second.run.sessions) == 2


def test_resume_without_a_step_goes_on_at_the_last_recorded_one(tmp_path):
    with lens(tmp_path, [Index()], every=2) as first:
        for _ in range(5):
            first.step()
    assert lens(tmp_path, [Index()], every=2, resume=True).index == 5


def test_an_existing_run_is_not_touched_without_resume(tmp_path):
    with lens(tmp_path, [Index()]):
        pass
    content = (tmp_path / "run.sqlite").read_bytes()
    with pytest.raises(RunExistsError, match="pass resume=True to continue it"):
        lens(tmp_path, [Index()])
    assert (tmp_path / "run.sqlite").read_bytes() == content


def test_disabled_it_does_nothing_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLENS_DISABLE", "1")
    with lens(tmp_path, [Fails()], every=1) as watched:
        watched.step(loss=torch.tensor(1.0))
        watched.log("x", 1.0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="unset NORMLENS_DISABLE"):
        _ = watched.run


def test_while_it_is_open_the_model_can_be_copied_pickled_saved_and_compiled(tmp_path):
    model, (x, _) = mlp(), batch()
    with lens(tmp_path, [Index(), TrainingCurve()], model, every=1) as watched:
        watched.step()
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)  # noqa: S301 - the user's pickle
        torch.save(model.state_dict(), io.BytesIO())
        assert torch.equal(torch.compile(model, backend="eager")(x), expected)


def test_a_number_of_the_users_own_is_kept_at_the_present_step(tmp_path):
    with lens(tmp_path, [Index()]) as watched:
        watched.step()
        watched.log("test_accuracy", 0.75, error=0.01, n=400)
    (reading,) = watched.run.readings("user", 1)
    assert (reading.name, reading.value, reading.error, reading.n) == ("test_accuracy", 0.75, 0.01, 400)


def test_without_out_the_run_is_kept_in_a_temporary_file_and_said_where(capsys):
    with Lens(mlp(), loss_function, batch(), probes=[Index()]) as watched:
        pass
    assert str(watched.run.path) in capsys.readouterr().err
    assert watched.run.steps("index") == [0]


def test_without_probe_data_the_training_batch_is_measured_and_without_any_the_failure_says_so(tmp_path):
    watched = Lens(mlp(), loss_function, probes=[TrainingCurve()], out=tmp_path / "run", every=at(1, 2))
    watched.step(batch=batch(8))
    with pytest.warns(RuntimeWarning, match="pass data= to the lens or batch= to step"):
        watched.step()
    watched.close()
    assert watched.run.steps("training_curve") == [1]


def test_a_file_that_cannot_be_written_warns_once_and_the_training_goes_on(tmp_path, monkeypatch):
    watched = lens(tmp_path, [Index()], every=1)

    def full(measurements):
        raise RunError("cannot write: disk is full")

    monkeypatch.setattr(watched._recorder._writer, "write", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched.start()
        watched.step()
        watched.close()
    first, last = (str(w.message) for w in caught)
    assert "disk is full. The training goes on; measurements are lost" in first
    assert "3 measurements could not be written" in last


def test_after_close_a_step_warns_once_and_records_nothing(tmp_path):
    with lens(tmp_path, [Index()], every=1) as watched:
        pass
    with pytest.warns(RuntimeWarning, match="the lens is closed"):
        watched.step()
        watched.step()
    assert watched.run.steps("index") == [0]


def test_a_probe_s_own_schedule_narrows_the_lens_s(tmp_path):
    @dataclass(frozen=True)
    class Seldom(Index):
        when: Schedule = field(default=at(2, 3, 4))

    with lens(tmp_path / "r", [Index(), Seldom()], every=2, min_runs=2) as watching:
        for _ in range(6):
            watching.step()
    assert watching.run.steps("index") == [0, 2, 4, 6]
    assert watching.run.steps("seldom") == [2, 4]


def test_two_probes_of_one_class_keep_their_own_names(tmp_path):
    with lens(tmp_path, [Sleeps(0.0), Sleeps(0.001)], every=1):
        pass
    assert open_run(tmp_path / "run").probes == ["sleeps", "sleeps_2", "lens"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"every": 0}, "n >= 1"),
        ({"budget": 0.0}, "budget must be a positive fraction"),
        ({"min_runs": 3}, "min_runs must be 0, 1 .* or 2"),
        ({"on_error": "ignore"}, "on_error must be 'warn' or 'raise'"),
        ({"mode": "test"}, "mode must be 'train', 'eval' or None"),
        ({"probes": [Index]}, "probes must be instances"),
    ],
)
def test_an_argument_out_of_its_range_is_refused_before_a_file_is_made(settings, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        Lens(mlp(), loss_function, batch(), out=tmp_path / "run", **{"probes": [Index()], **settings})
    assert list(tmp_path.iterdir()) == []
