"""Small probes, and a lens with them on a small network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from normlens.run.lens import Lens
from normlens.run.probe import Probe, Reading
from support.networks import batch, mlp

loss_function = nn.functional.cross_entropy


@dataclass(frozen=True)
class Index:
    """Reads the step's own number, what came before it, and the passed loss."""

    def cost(self, step):
        return 1.0

    def __call__(self, step):
        yield Reading("index", float(step.index))
        yield Reading("loss", float("nan") if step.loss is None else step.loss)
        if step.previous.first:
            yield Reading("first", step.previous.first["", "index"].value)
            yield Reading("last", step.previous.last["", "index"].value)
            yield Reading("at", step.previous.at(int(step.previous.last["", "index"].value))["", "index"].value)


@dataclass(frozen=True)
class Sleeps:
    """Costs a known time, and says truly or falsely what it will cost."""

    seconds: float = 0.01
    prior: float = 0.0

    def cost(self, step):
        return self.prior

    def __call__(self, step):
        time.sleep(self.seconds)
        yield Reading("slept", self.seconds)


@dataclass(frozen=True)
class Fails:
    def cost(self, step):
        return 1.0

    def __call__(self, step):
        raise ValueError("what a pity")


def lens(out: Path, probes: list[Probe], model: nn.Module | None = None, **settings) -> Lens:
    return Lens(model or mlp(), loss_function, batch(), probes=probes, out=out / "run", **settings)
