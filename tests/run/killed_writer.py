"""A program that writes runs and is killed; the tests run it, and import nothing from it but what it writes.

``killed_writer.py FOLDER KILLS LONGEST [no-log]`` forks a writer for each of ``KILLS`` files, kills it with SIGKILL
after at most ``LONGEST`` seconds, and prints the number of steps that each had acknowledged: -1 for one that had not
even been opened.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import struct
import sys
import time
from pathlib import Path

import numpy as np

from normlens.run.reading import Measurement, Reading
from normlens.run.writer import RunWriter


def step_of(kill: int, step: int) -> list[Measurement]:
    """The two measurements that a killed run holds of each step, a pure function of its arguments."""
    rng = np.random.default_rng([kill, step])
    return [
        Measurement(
            step, probe, readings=(Reading("w", rng.standard_normal(5), dims=("unit",)), Reading("v", rng.random()))
        )
        for probe in "pq"
    ]


def write_until_killed(path: Path, kill: int, acknowledge: int) -> None:
    """Open, write some steps, close, resume, for ever; each acknowledgement follows the return of ``write``."""
    lengths = random.Random(kill)
    step = 0
    while True:
        with RunWriter(path, {"kill": kill}, resume=True, first_step=step) as writer:
            os.write(acknowledge, struct.pack("<i", step))
            for _ in range(lengths.randint(1, 40)):
                writer.write(step_of(kill, step))
                step += 1
                os.write(acknowledge, struct.pack("<i", step))


def kill_one(path: Path, kill: int, longest: float) -> int:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        write_until_killed(path, kill, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        opened = b"" if kill % 5 == 4 else pipe.read(4)  # every fifth may die before it has opened its file
        time.sleep(random.Random(kill).uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = opened + pipe.read()
    return struct.unpack("<i", acknowledged[-4:])[0] if acknowledged else -1


class NoLog(sqlite3.Connection):
    """A connection that has no write-ahead log, as on a network disk."""

    def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        return super().execute(statement.replace("journal_mode=WAL", "journal_mode=DELETE"), *parameters)


def main(folder: str, kills: str, longest: str, log: str = "") -> None:
    assert "torch" not in sys.modules
    if log == "no-log":
        opened = sqlite3.connect
        sqlite3.connect = lambda address, **settings: opened(address, **settings, factory=NoLog)
    for kill in range(int(kills)):
        print(kill_one(Path(folder) / f"{kill}.sqlite", kill, float(longest)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
