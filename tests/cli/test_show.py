from __future__ import annotations

import json
import subprocess
import sys

from normlens.cli.main import main


def test_show_prints_the_table_the_probes_and_the_files(two_runs, capsys):
    assert main(["show", str(two_runs)]) == 0
    text = capsys.readouterr().out
    for words in (
        "begun first",
        "begun second",
        "training_curve",
        "2 measurements, steps 0 to 10",
        str(two_runs / "a"),
    ):
        assert words in text


def test_show_json_is_json_alone_and_holds_header_probes_and_findings(two_runs, capsys):
    assert main(["show", "--json", str(two_runs / "a")]) == 0
    facts = json.loads(capsys.readouterr().out)["begun second"]
    assert facts["header"]["config"] == {"norm": "begun second"}
    assert facts["probes"] == {"training_curve": [0, 10], "elimination": [0, 10]}
    assert isinstance(facts["findings"], list)


def test_show_never_imports_torch(two_runs):
    for extra in ([], ["--json"]):
        code = (
            "import sys\nfrom normlens.cli.main import main\n"
            f"main(['show', {str(two_runs)!r}, *{extra!r}])\nsys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_missing_run_gives_exit_code_3(tmp_path, capsys):
    assert main(["show", str(tmp_path / "nothing")]) == 3
    assert "there is no run at" in capsys.readouterr().err


def test_a_damaged_run_gives_exit_code_3_and_can_be_recovered(two_runs, capsys):
    path = two_runs / "a.sqlite"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"gradient_norm", b"gradient_nurm", 1))
    assert main(["show", str(path)]) == 3
    assert "checksum" in capsys.readouterr().err
    assert main(["show", "--recover", str(path)]) == 0
    assert "damaged: " in capsys.readouterr().out
