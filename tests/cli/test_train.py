from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from normlens.cli.main import main
from normlens.run.errors import RunError
from normlens.run.store import open_run

SHORT = ["--model", "mlp", "--epochs", "1", "--batch-size", "256", "--every", "3"]


@pytest.mark.slow
def test_one_run_for_each_norm_and_seed_and_a_report(tmp_path, capsys):
    arguments = ["run", *SHORT, "--norm", "batch_norm,none", "--seeds", "0,1", "--out", str(tmp_path), "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert Path(result["report"]).is_file()
    assert [row["name"] for row in result["runs"]] == [
        "batch_norm, seed 0", "batch_norm, seed 1", "none, seed 0", "none, seed 1",
    ]  # fmt: skip
    run = open_run(tmp_path / "none-seed1")
    assert run.header["config"]["norm"] == "none"
    assert run.header["seed"] == 1
    assert run.steps("training_curve") == [0, 3, 6]
    assert {"test_accuracy", "epoch"} == set(run.frame("user")["name"])


def test_a_recurrent_network_is_run_with_its_own_norm_and_with_others(tmp_path, capsys):
    norms = ["recurrent_batch_norm", "layer_norm", "none"]
    arguments = ["run", *SHORT, "--model", "rnn", "--norm", ",".join(norms), "--out", str(tmp_path), "--json"]
    assert main([*arguments, "--probes", "training_curve,activation_drift"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["runs"]] == norms
    for norm in norms:
        assert open_run(tmp_path / f"{norm}-seed0").steps("activation_drift") == [0, 3, 6]


@pytest.mark.slow
def test_optimizers_weights_schedules_and_augmentations_are_run_in_every_combination(tmp_path, capsys):
    arguments = ["run", *SHORT, "--norm", "none", "--optimizer", "sgd,adamw+bnp", "--augment", "none,apr_pair"]
    arguments += ["--schedule", "legw", "--out", str(tmp_path), "--json", "--probes", "training_curve"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    names = ["none, sgd, none", "none, sgd, apr_pair", "none, adamw+bnp, none", "none, adamw+bnp, apr_pair"]
    assert [row["name"] for row in rows] == names
    config = open_run(tmp_path / "none-adamw+bnp-legw-apr_pair-seed0").header["config"]
    assert config["optimizer"] == "AdamW(lr=0.05) + BNP"
    assert (config["schedule"], config["augment"], config["weights"]) == ("legw", "apr_pair", "none")


@pytest.mark.slow
def test_layers_that_draw_as_dropout_does_draw_from_the_seed_and_leave_the_global_state_alone(tmp_path):
    losses = []
    with torch.random.fork_rng(devices=[]):
        for number, norms in enumerate(("independent_component", "none,independent_component")):
            torch.manual_seed(number)
            before, out = torch.random.get_rng_state(), tmp_path / str(number)
            arguments = ["run", *SHORT, "--norm", norms, "--probes", "training_curve", "--out", str(out), "--quiet"]
            assert main(arguments) == 0
            assert torch.equal(torch.random.get_rng_state(), before)
            frame = open_run(out / "independent_component-seed0").frame("training_curve")
            losses.append(frame["value"].tolist())
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(tmp_path, capsys):
    for folder in ("a", "b"):
        assert main(["run", *SHORT, "--norm", "batch_norm", "--out", str(tmp_path / folder), "--quiet"]) == 0
    one, two = (open_run(tmp_path / folder / "batch_norm-seed0").frame("training_curve") for folder in "ab")
    assert one["value"].tolist() == two["value"].tolist()


def test_quiet_prints_the_path_of_the_report_alone(tmp_path, capsys):
    assert main(["run", *SHORT, "--probes", "training_curve", "--out", str(tmp_path), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'report.html'}\n"
    assert printed.err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--norm", "dropoutt"], 2, "unknown name 'dropoutt' in --norm: did you mean 'dropout' or 'spatial_dropout'"),
        (["--norm", "bach_norm"], 2, "unknown name 'bach_norm' in --norm: did you mean 'batch_norm'"),
        (["--model", "cmn"], 2, "did you mean 'cnn'"),
        (["--data", "digit"], 2, "did you mean 'digits'"),
        (["--probes", "eliminate"], 2, "did you mean 'elimination'"),
        (["--norm", "batch_norm,batch_norm"], 2, "different names"),
        (["--seeds", "one"], 2, "--seeds must be integers"),
        (["--data", "mnist"], 2, "say where they are with --data-dir"),
        (["--device", "mps"], 2, "torch sees no such device"),
        (["--model", "mlp", "--norm", "instance_norm"], 4, "model mlp with norm instance_norm: "),
        (["--model", "rnn", "--norm", "instance_norm"], 4, "model rnn with norm instance_norm: a recurrent network"),
        (["--model", "mlp", "--norm", "recurrent_batch_norm"], 2, "unknown name 'recurrent_batch_norm' in --norm"),
        (["--optimizer", "bnq"], 2, "unknown name 'bnq' in --optimizer: did you mean 'bnp'"),
        (["--optimizer", "sgd+adamw"], 2, "names two optimizers: give one of sgd, adamw"),
        (["--weights", "weightnorm"], 2, "did you mean 'weight_norm'"),
        (["--schedule", "cosine"], 2, "unknown name 'cosine' in --schedule"),
        (["--augment", "apr"], 2, "did you mean 'apr_pair'"),
        (["--optimizer", "bnp"], 4, "model cnn with norm batch_norm: "),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_trained(arguments, code, words, tmp_path, capsys):
    assert main(["run", *arguments, "--out", str(tmp_path)]) == code
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_is_there_is_kept_unless_overwrite_is_given(tmp_path, capsys):
    arguments = ["run", *SHORT, "--out", str(tmp_path), "--quiet"]
    assert main(arguments) == 0
    content = (tmp_path / "batch_norm-seed0.sqlite").read_bytes()
    assert main(arguments) == 1
    assert "pass --overwrite to replace it" in capsys.readouterr().err
    assert (tmp_path / "batch_norm-seed0.sqlite").read_bytes() == content
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(("option", "value"), [("--epochs", "0"), ("--lr", "-1"), ("--lr", "inf"), ("--budget", "x")])
def test_a_number_out_of_its_range_is_a_usage_error(option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", option, value])
    assert stop.value.code == 2


LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from normlens.cli.main import main
sys.exit(main())
"""


@pytest.mark.slow
def test_ctrl_c_in_mid_training_leaves_a_readable_run_and_exit_code_130(tmp_path):
    command = [sys.executable, "-c", LISTENING, "run", "--epochs", "2000", "--every", "20", "--quiet"]
    command += ["--probes", "training_curve,elimination", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    path = tmp_path / "batch_norm-seed0.sqlite"
    deadline = time.monotonic() + 100
    try:
        while time.monotonic() < deadline and not _has_measured(path):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
    run = open_run(path)
    assert len(run.steps("training_curve")) > 1
    assert run.probes[-1] == "lens"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def _has_measured(path: Path) -> bool:
    """Whether a run that is being written holds more than its first measurement."""
    try:
        return len(open_run(path).steps("training_curve")) > 2
    except RunError:
        return False
