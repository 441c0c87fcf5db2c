from __future__ import annotations

import pytest

from normlens.report.rules.damaged import damaged
from normlens.run.errors import RunCorruptError
from normlens.run.store import open_run


def test_what_was_left_out_of_a_damaged_file_is_said_and_without_recover_it_raises(make_run):
    run = make_run()
    raw = bytearray(run.path.read_bytes())
    found = raw.find(b"gradient_norm")
    raw[found : found + 8] = b"garbages"
    run.path.write_bytes(raw)
    (finding,) = damaged(open_run(run.path, recover=True))
    assert finding.severity == "look"
    assert "checksum" in finding.message
    with pytest.raises(RunCorruptError, match="checksum"):
        damaged(open_run(run.path))
