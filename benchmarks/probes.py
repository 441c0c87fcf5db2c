"""What one measurement of each probe costs on the digits CNN: 256 samples, in a training under way.

Every probe that ``normlens list`` knows, with its defaults, at five steps of a training with batch norm, and of one
with the IC layer for those that look for gates. The limit is 1.5 s a measurement for the four main ones that need no
curvature: elimination, activation_drift, fisher_vector, mutual_information. The run's file says what each one took.
``python probes.py`` measures all; ``python probes.py elimination fisher_vector`` some.
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import normlens as nl
from normlens import catalog, data, models

MAIN = ("elimination", "activation_drift", "fisher_vector", "mutual_information")
LIMIT = 1.5
EVERY, MEASUREMENTS = 20, 6


def measured(norm: str, names: list[str]) -> dict[str, list[float]]:
    """Return the seconds of each measurement of each probe, the first (which warms up) left out."""
    digits = data.digits()
    model = models.CNN(digits.shape, len(digits.classes), norm=norm, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    probes = [catalog.load("normlens.probes", name)() for name in names]
    held = tuple(part[:256] for part in digits.train)
    out = Path(tempfile.mkdtemp()) / "run"
    loss_of = nn.functional.cross_entropy
    with nl.Lens(model, loss_of, held, probes=probes, every=EVERY, optimizer=optimizer, out=out) as lens:
        steps = 0
        while steps < EVERY * (MEASUREMENTS - 1):
            for x, y in digits.loader(64, seed=steps):
                loss = loss_of(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                lens.step(loss=loss, batch=(x, y))
                steps += 1
                if steps == EVERY * (MEASUREMENTS - 1):
                    break
    run = nl.open_run(out)
    failed = {m.probe: m.message for m in run.measurements if m.status not in ("ok", "note")}
    for probe, why in failed.items():
        print(f"{probe} under {norm}: {why}", file=sys.stderr)
    return {name: [m.seconds for m in run.measurements if m.probe == name and m.status == "ok"][1:] for name in names}


def main(names: list[str]) -> None:
    """Print the table."""
    chosen = names or catalog.names("normlens.probes")
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}, {time.strftime('%F')}\n")
    print("| probe | batch norm, ms | IC layer, ms |")
    print("|---|---|---|")
    found = [measured(norm, chosen) for norm in ("batch_norm", "independent_component")]
    middle = [{name: 1e3 * statistics.median(times or [float("nan")]) for name, times in one.items()} for one in found]
    for name in chosen:
        print(f"| `{name}` | {middle[0][name]:.1f} | {middle[1][name]:.1f} |")
    if set(MAIN) <= set(chosen):
        both = [sum(one[name] for name in MAIN) / 1e3 for one in middle]
        kept = "yes" if max(both) <= LIMIT else "NO"
        print(f"| the four main ones without curvature | {both[0]:.2f} s | {both[1]:.2f} s (limit {LIMIT} s: {kept}) |")


if __name__ == "__main__":
    main(sys.argv[1:])
