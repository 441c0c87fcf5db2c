"""The fault zoo: how often ``diagnose`` names a planted fault, and how often it is alarmed at a healthy run.

Thresholds were set on MLPs and CNNs with seeds 10 to 14; here the seeds are 0 to 4 (``gradients_at_init`` and
``above_the_edge`` were set again, on seeds 10 to 14, after a miss and two alarms among these). ResNet, RNN and
transformer were not looked at while a threshold was set. ``--part`` and ``--log`` run it in pieces (one record a
line); ``--tables`` prints the tables of such logs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import normlens as nl
from faults.faults import FAULTS, Fault
from faults.healthy import HEALTHY, Healthy
from faults.healthy import HELD_OUT as HEALTHY_HELD_OUT
from faults.patient import HELD_OUT, SEEN, Architecture, Patient
from faults.runs import watch

Record = dict[str, object]
HEALTHY_PARTS = {"healthy": HEALTHY, "healthy-held-out": HEALTHY_HELD_OUT}
PARTS = (*HEALTHY_PARTS, *SEEN, *HELD_OUT)


def healthy(part: str, cases: Sequence[Healthy], seeds: Sequence[int]) -> Iterator[Record]:
    for seed in seeds:
        for case in cases:
            yield {"part": part, "name": case.name, "seed": seed, **examined(case.make(seed), seed, None)}


def planted(architecture: Architecture, seeds: Sequence[int], rules: Sequence[str]) -> Iterator[Record]:
    for seed in seeds:
        for fault in (fault for fault in FAULTS if not rules or fault.rule in rules):
            patient = fault.plant(architecture, seed)
            about = {"part": architecture, "name": fault.name, "rule": fault.rule, "seed": seed}
            yield about | ({} if patient is None else examined(patient, seed, fault))


def examined(patient: Patient, seed: int, fault: Fault | None) -> Record:
    """Train and diagnose; what is found as severity and rule, worst first."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        findings = nl.diagnose(watch(patient, Path(folder) / "run.sqlite", seed))
    found = [f"{finding.severity} {finding.rule}" for finding in findings]
    named = {} if fault is None else {"named": fault.is_named(findings)}
    return {"found": list(dict.fromkeys(found)), "seconds": time.perf_counter() - begun, **named}


def of_faults(records: list[Record]) -> None:
    """Detection of each fault on each architecture, and whether it is the first finding."""
    parts = [part for part in (*SEEN, *HELD_OUT) if any(r["part"] == part for r in records)]
    print(f"\n| planted | rule | {' | '.join(parts)} | first finding on MLP and CNN |")
    print(f"|---|---|{'---|' * (len(parts) + 1)}")
    for fault in FAULTS:
        mine = [r for r in records if r["name"] == fault.name and "named" in r]
        cells = [share([r["named"] for r in mine if r["part"] == part]) for part in parts]
        print(f"| {fault.name} | `{fault.rule}` | {' | '.join(cells)} | {share(firsts(mine, SEEN))} |")
    runs = [[r for r in records if r["part"] == part and "named" in r] for part in parts]
    named = [share([r["named"] for r in of_part], percent=True) for of_part in runs]
    first = [share(firsts(of_part, parts), percent=True) for of_part in runs]
    print(f"| **all, named** | | {' | '.join(named)} | |\n| **all, first finding** | | {' | '.join(first)} | |")


def firsts(records: list[Record], parts: Sequence[str]) -> list[bool]:
    return [is_first(record) for record in records if record["part"] in parts]


def is_first(record: Record) -> bool:
    found = record["found"]
    return bool(record["named"]) and found[0].endswith(f" {record['rule']}")


def of_healthy(records: list[Record]) -> None:
    """Alarms by severity, and which rules raised them."""
    for part in HEALTHY_PARTS:
        mine = [r for r in records if r["part"] == part]
        if not mine:
            continue
        print(f"\n| {part} run | runs | sick | look | note | which |\n|---|---|---|---|---|---|")
        for name in dict.fromkeys(r["name"] for r in mine):
            print_healthy(str(name), [r for r in mine if r["name"] == name])
        print_healthy("**all**", mine)


def print_healthy(name: str, runs: list[Record]) -> None:
    counts = [sum(any(f.startswith(level) for f in r["found"]) for r in runs) for level in ("sick", "look", "note")]
    which = sorted({f for r in runs for f in r["found"]})
    print(f"| {name} | {len(runs)} | {' | '.join(map(str, counts))} | {', '.join(which)} |")


def share(flags: Sequence[object], *, percent: bool = False) -> str:
    if not flags:
        return "no place"
    text = f"{sum(map(bool, flags))}/{len(flags)}"
    return f"{text} ({100 * sum(map(bool, flags)) / len(flags):.0f} %)" if percent else text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--rule", nargs="+", default=[], help="only what is planted for these")
    parser.add_argument("--log", type=Path, help="append each record to this file")
    parser.add_argument("--tables", type=Path, nargs="*", help="print the tables of these logs and train nothing")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.tables is not None:
        records = [json.loads(line) for path in given.tables for line in path.read_text().splitlines()]
    else:
        records = []
        for part in given.part:
            cases = HEALTHY_PARTS.get(part)
            made = healthy(part, cases, given.seeds) if cases else planted(part, given.seeds, given.rule)
            for record in made:
                records.append(record)
                if given.log:
                    with given.log.open("a") as log:
                        log.write(json.dumps(record) + "\n")
    if any("named" in record for record in records):
        of_faults(records)
    of_healthy(records)
    print(f"\n{len(records)} runs, {sum(float(r.get('seconds', 0)) for r in records):.0f} s")


if __name__ == "__main__":
    main()
