from __future__ import annotations

import pytest

from normlens.report.snapshot import Snapshot
from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement, Reading
from normlens.run.store import Run, open_run
from normlens.run.writer import RunWriter


def test_a_snapshot_does_not_change_while_the_run_is_written(tmp_path):
    loss = (Reading("loss", 1.0),)
    with RunWriter(tmp_path / "run", {"name": "x"}) as writer:
        writer.write([Measurement(0, "training_curve", readings=loss)])
        live = open_run(tmp_path / "run")
        kept = Snapshot(live)
        before = kept.frame("training_curve")
        writer.write([Measurement(1, "training_curve", readings=loss)])
        assert len(live.frame("training_curve")) == 2
        assert len(kept.frame("training_curve")) == len(before) == 1
        assert len(kept.measurements) == 1
        assert kept.probes == live.probes


def test_each_table_is_read_once(healthy_run, monkeypatch):
    asked = []
    original = Run.frame
    monkeypatch.setattr(Run, "frame", lambda self, probe: asked.append(probe) or original(self, probe))
    kept = Snapshot(healthy_run)
    for _ in range(3):
        kept.frame("elimination")
        with pytest.raises(NotRecordedError, match="nowhere"):
            kept.frame("nowhere")
    assert asked == ["elimination", "nowhere"]
