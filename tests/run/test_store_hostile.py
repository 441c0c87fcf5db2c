"""P5: opening somebody else's run executes nothing, and asks for no more memory or time than the file is long."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import time
from contextlib import closing, suppress

import numpy as np
import pytest

from normlens.run.errors import RunCorruptError, RunError, RunFormatError
from normlens.run.reading import Measurement, Reading
from normlens.run.record import checksum
from normlens.run.store import open_run
from normlens.run.writer import RunWriter


@pytest.fixture
def forged(small_file):
    """``forged(table, **columns)``: rows with other contents and the right checksums for them; opens the run."""
    path, _ = small_file

    def forge(table: str, *, recover: bool = False, **columns):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            for name, value in columns.items():
                connection.execute(f"UPDATE {table} SET {name}=?", (value,))
            for row in connection.execute(f"SELECT * FROM {table}").fetchall():
                index, *fields = tuple(row)[:-1]
                right = checksum(*fields) if table in {"reading", "tail"} else checksum(index, *fields)
                connection.execute(f"UPDATE {table} SET checksum=? WHERE id=?", (right, index))
        return open_run(path, recover=recover)

    return forge


def everything(run):
    return run.sessions, list(run.with_readings()), run.frame("elimination")


def test_a_forgery_that_changes_nothing_reads_as_before(forged):
    """The fixture itself: its checksums are right."""
    everything(forged("reading", units="s"))


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("reading", {"dtype": "|O"}),
        ("reading", {"dtype": "|V8"}),
        ("reading", {"shape": f"[{2**40}]"}),
        ("reading", {"shape": f"[{2**62}, 0]", "value": b""}),
        ("reading", {"shape": "[" * 10**6}),
        ("reading", {"dims": '{"a":' * 10**5}),
        ("reading", {"dims": '["a", "b"]'}),
        ("reading", {"name": b"\xff\xfe"}),
        ("reading", {"value": "text"}),
        ("reading", {"n": "many"}),
        ("reading", {"error": "1.0x"}),
        ("measurement", {"readings": 2**62}),
        ("measurement", {"readings": -1}),
        ("measurement", {"first_reading": 2**63 - 1}),
        ("measurement", {"first_reading": -(2**63)}),
        ("measurement", {"first_reading": "one"}),
        ("measurement", {"step": "late"}),
        ("measurement", {"probe": None}),
        ("measurement", {"seconds": b"\x00"}),
        ("session", {"header": "[" * 10**6}),
        ("session", {"header": "[1, 2]"}),
        ("session", {"header": "null"}),
        ("session", {"header": None}),
        ("session", {"first_step": "never"}),
        ("tail", {"measurements": 2**62}),
        ("tail", {"sessions": -1}),
        ("tail", {"measurements": "all"}),
    ],
)
def test_a_forged_record_is_a_typed_error_at_once(forged, table, columns):
    start = time.perf_counter()
    with pytest.raises(RunCorruptError):
        everything(forged(table, **columns))
    with suppress(RunError):
        list(forged(table, recover=True).with_readings())
    assert time.perf_counter() - start < 5


def change(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i, i, i FROM n"


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize(
    "statements",
    [
        ("DROP TABLE session", f"CREATE VIEW session AS {ENDLESS}"),
        ("DROP TABLE tail", f"CREATE VIEW tail AS {ENDLESS}"),
        (f"CREATE VIEW more AS {ENDLESS}",),
        ("CREATE TRIGGER tail BEFORE UPDATE ON tail BEGIN DELETE FROM reading; END",),
        ("CREATE TABLE more (a CHECK (a > load_extension('x')))",),
        ("CREATE TABLE more (a, b AS (hex(zeroblob(1000000000))))",),
    ],
)
def test_views_triggers_and_expressions_in_the_schema_never_run(small_file, statements, recover):
    path, _ = small_file
    change(path, *statements)
    before = path.read_bytes()
    for attempt in (lambda: open_run(path, recover=recover), lambda: RunWriter(path, {}, resume=True)):
        with pytest.raises(RunFormatError, match="does not hold the tables of a normlens run and nothing else"):
            attempt()
    assert path.read_bytes() == before


def inner_page(child: int) -> bytes:
    """An inner page of a table, all of whose branches lead to the same child."""
    cells = [struct.pack(">I", child) + bytes([key]) for key in range(1, 120)]
    start = 4096 - 5 * len(cells)
    head = struct.pack(">BHHHBI", 5, 0, len(cells), start, 0, child)
    pointers = b"".join(struct.pack(">H", start + 5 * i) for i in range(len(cells)))
    return (head + pointers).ljust(start, b"\0") + b"".join(cells)


@pytest.mark.parametrize("table", ["measurement", "session", "tail", "reading"])
def test_a_tree_of_pages_with_more_branches_than_atoms_does_not_hang(small_file, table):
    path, made = small_file
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name=?"
        root = connection.execute(query, (table,)).fetchone()[0]
    raw = path.read_bytes()
    pages, depth = len(raw) // 4096, 15
    leaf = raw[4096 * (root - 1) : 4096 * root]
    branches = [inner_page(pages + i + 1) for i in range(1, depth)]
    grown = raw[: 4096 * (root - 1)] + inner_page(pages + 1) + raw[4096 * root :] + b"".join(branches) + leaf
    path.write_bytes(grown[:28] + struct.pack(">I", pages + depth) + grown[32:])
    start = time.perf_counter()
    with pytest.raises(RunCorruptError, match="damaged"):
        open_run(path)
    run = open_run(path, recover=True)
    assert {m.step for m in run.with_readings()} <= {m.step for m in made}
    assert time.perf_counter() - start < 10


def test_names_that_try_to_break_out_come_back_as_they_were(tmp_path, hostile_names):
    names = [
        *hostile_names.values(),
        "../../etc/passwd",
        "/etc/passwd",
        "'; DROP TABLE reading; --",
        "",
        "\r\n",
        "%s{0}",
    ]
    with RunWriter(tmp_path / "x", {"name": names, "config": {name: name for name in names}}) as writer:
        for step, name in enumerate(names):
            reading = Reading(name, np.ones(1), layer=name, units=name, dims=(name,))
            writer.write([Measurement(step, name, "ok", name, name, readings=(reading,))])
    assert len(list(tmp_path.iterdir())) == 1
    run = open_run(tmp_path / "x")
    kept = [name.replace("\ud800", r"\ud800") for name in names]  # UTF-8 has no lone surrogates
    assert run.header["name"] == names
    assert run.probes == kept
    for measurement, name in zip(run.with_readings(), kept, strict=True):
        (reading,) = measurement.readings
        assert {measurement.probe, measurement.message, measurement.mode, *reading.dims, reading.name} == {name}
        assert (reading.layer, reading.units) == (name, name)
        table = run.frame(name)
        assert table[["layer", "name", "units", "mode"]].to_numpy().tolist() == [[name] * 4]
        run.array(name, name, layer=name).values.tobytes().decode("latin-1")


def test_a_newer_schema_is_refused_and_not_guessed_at(small_file):
    path, _ = small_file
    change(path, "PRAGMA user_version=2", "ALTER TABLE reading ADD COLUMN unheard_of")
    for recover in (False, True):
        with pytest.raises(RunFormatError, match=r"schema version 2, this normlens reads 1"):
            open_run(path, recover=recover)


def test_numbers_in_a_header_survive_as_json_has_them(tmp_path):
    header = {"lr": 0.1, "big": 10**30, "nan": math.nan, "inf": -math.inf, "nested": {"a": [1, None, True]}}
    with RunWriter(tmp_path / "x", header):
        pass
    found = open_run(tmp_path / "x").header
    assert math.isnan(found.pop("nan"))
    assert json.dumps(found) == json.dumps({k: v for k, v in header.items() if k != "nan"} | {"first_step": 0})


def test_a_run_may_be_reached_through_a_link_and_stays_one_file(small_file, tmp_path, contents):
    path, _ = small_file
    link = tmp_path / "links" / "alias.sqlite"
    link.parent.mkdir()
    link.symlink_to(path)
    assert contents(open_run(link)) == contents(open_run(path))
    with RunWriter(link, {}, resume=True, first_step=9) as writer:
        writer.write([Measurement(9, "p")])
    assert [m.step for m in open_run(path).measurements][-1] == 9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["links", "small.sqlite"]
