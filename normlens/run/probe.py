"""Step, Reading, Probe: the contract of a probe. This file is all that a new probe needs to know."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from normlens.risk import EmpiricalRisk
from normlens.run.capture import Activation, Layers
from normlens.run.reading import Reading
from normlens.typing import Batch

__all__ = ["Previous", "Probe", "Reading", "Readings", "Step", "named_probes", "probe_name", "wants"]

Readings = Mapping[tuple[str, str], Reading]
"""What a probe read at one step, by (layer, name)."""


@dataclass(frozen=True)
class Previous:
    """What the same probe read before; a probe keeps no state of its own, so that a resumed run goes on seamlessly.

    Readings that are not ``stored`` are in ``last`` alone, and only while the process lives that measured them.

    Attributes:
        first: its first readings in this run, empty at the first measurement.
        last: those of its last successful measurement before this one.
        at: ``at(step)`` -> its readings at that step, from the file; raises NotRecordedError where there are none.
    """

    first: Readings = field(default_factory=dict)
    last: Readings = field(default_factory=dict)
    at: Callable[[int], Readings] = field(default=lambda step: {})


@dataclass(frozen=True)
class Step:
    """One moment of a training run, as a probe sees it.

    Attributes:
        index: optimizer steps taken so far; 0 is the state before training.
        risk: the loss on the probe data as a pure function of the parameters; ``risk.model`` is the eager module.
        activations: ``activations(layers)`` -> inputs and outputs of the chosen modules, by name in network order;
            one forward pass serves all probes of the step. ``layers`` is a glob, names, a predicate or None for all.
        previous: what this probe read before.
        optimizer: the user's optimizer, to be read only; None if the lens does not know it.
        generator: for the probe's own randomness; the same for every measurement at the same step and seed.
        batch: the training batch that the user passed, or None.
        loss: the training loss that the user passed, or None.
        update: the last optimizer step, parameter by parameter (new minus old), for probes that declare
            ``uses_update = True``; None where it is not known (before training).
    """

    index: int
    risk: EmpiricalRisk
    activations: Callable[[Layers], Mapping[str, Activation]]
    previous: Previous
    optimizer: torch.optim.Optimizer | None
    generator: torch.Generator
    batch: Batch | None = None
    loss: float | None = None
    update: Mapping[str, Tensor] | None = None


@runtime_checkable
class Probe(Protocol):
    """One question to a model: a frozen dataclass with a default for every field, and no state.

    A field ``when``, a schedule, narrows the lens's own for this probe alone.
    It may raise: the lens records that, warns once, and the training goes on. What it does to the model is undone.
    """

    def cost(self, step: Step) -> float:
        """Return the prior cost of one measurement, in evaluations of the gradient on the probe data."""
        ...

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure."""
        ...


def wants(probe: Probe, index: int) -> bool:
    """Say whether a probe's own schedule, if it has one as its field ``when``, lets it be measured at a step."""
    when = getattr(probe, "when", None)
    return when is None or bool(when(index))


def probe_name(probe: Probe) -> str:
    """Return the name under which a probe's readings are kept: its class in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(probe).__name__).lower()


def named_probes(probes: Sequence[Probe]) -> dict[str, Probe]:
    """Name each probe after its class; a second one of the same class becomes ``name_2``.

    Raises:
        ValueError: something is not a probe, or is the class of one.
    """
    named: dict[str, Probe] = {}
    for probe in probes:
        if not isinstance(probe, Probe) or isinstance(probe, type):
            raise ValueError(f"probes must be instances with cost(step) and __call__(step); got {probe!r}")
        name = probe_name(probe)
        same = sum(1 for other in named.values() if probe_name(other) == name)
        named[f"{name}_{same + 1}" if same else name] = probe
    return named
