"""A million parameters within 2 GB: the largest eigenvalue and the density of a ResNet's Hessian, killed in between.

The network has batch norm and stands in train mode; its data are 512 patches of photographs in batches of 32. A child
process is killed with -9 when it has finished a third of its products, and started again: it must form no product a
second time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import normlens as nl
from normlens.curvature.product import RecomputedGraph

STEPS, PROBES = int(sys.argv[-1]) if sys.argv[-1].isdigit() else 20, 2


def work(path: Path) -> None:
    """Compute both, each product kept in the file."""
    images, labels = nl.data.patches().train
    model = nl.models.ResNet((3, 32, 32), 2, norm="batch_norm", depth=8, widths=(16, 64, 292))
    chosen = torch.linspace(0, len(images) - 1, 512).long()  # of both photographs
    batches = list(zip(images[chosen].split(32), labels[chosen].split(32), strict=True))
    risk = nl.EmpiricalRisk(model, cross_entropy, batches, mode="train")
    hessian = nl.curvature.hessian(risk, product=RecomputedGraph, check=False)
    operator = nl.curvature.resumable(hessian, path, key=risk)
    print(f"{operator.shape[0]} parameters", flush=True)
    top = nl.curvature.eigsh(operator, 1, tol=1e-2)
    seeded = torch.Generator().manual_seed(1)
    density = nl.curvature.spectral_density(operator, steps=STEPS, probes=PROBES, generator=seeded)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with that of the parent
    peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1e6
    print(f"lambda_max {float(top.values[0]):.5g} +- {float(top.residuals[0]):.1g}, {top.matvecs} products")
    print(f"density: resolution {density.resolution:.2g}, {density.cost} products")
    print(f"formed {operator.formed}, recalled {operator.recalled}, peak {peak:.2f} GB", flush=True)


def main() -> None:
    """Start, kill, start again."""
    path = Path(tempfile.mkdtemp()) / "products"
    begun = time.perf_counter()
    again = [sys.executable, __file__, "work", path, str(STEPS)]
    child = subprocess.Popen(again)
    size = 0
    while child.poll() is None and size < STEPS * 4_000_000:
        time.sleep(0.5)
        size = path.stat().st_size if path.exists() else 0
    child.send_signal(signal.SIGKILL)
    child.wait()
    print(f"killed after {time.perf_counter() - begun:.0f} s; {path.stat().st_size / 1e6:.0f} MB of products kept")
    subprocess.run(again, check=True)
    print(f"{time.perf_counter() - begun:.0f} s in all")
    os.remove(path)


if __name__ == "__main__":
    work(Path(sys.argv[2])) if sys.argv[1:2] == ["work"] else main()
