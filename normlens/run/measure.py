"""One measurement: a probe on a model that will not notice."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from normlens.risk import EmpiricalRisk
from normlens.run.capture import Activation, Layers, capture, choose
from normlens.run.clock import synchronized_time
from normlens.run.isolation import undisturbed
from normlens.run.probe import Previous, Probe, Step
from normlens.run.reading import Measurement, Reading

__all__ = ["Activations", "measure"]


@dataclass
class Activations:
    """The activations of one step: captured when first asked for, and then shared by all probes."""

    risk: EmpiricalRisk

    def __call__(self, layers: Layers = None) -> Mapping[str, Activation]:
        """Return the activations of the chosen layers."""
        return choose(self._captured, layers)

    @cached_property
    def _captured(self) -> dict[str, Activation]:
        return capture(self.risk)


def measure(
    model: torch.nn.Module, probe: Probe, name: str, step: Step, previous: Previous, *, elapsed: float, seed: int
) -> tuple[Measurement, Exception | None]:
    """Ask ``probe`` at ``step``, and return what it answered and what it raised, if it did.

    Every probe has an isolation of its own: what one leaves behind must not falsify the next one's numbers.
    Only an ``Exception`` is contained; KeyboardInterrupt and the like pass, after the model was restored.
    """
    generator = torch.Generator().manual_seed((seed << 32) + step.index)
    start = synchronized_time(model)
    readings: tuple[Reading, ...] = ()
    error: Exception | None = None
    try:
        with undisturbed(model, seed=seed):
            _stand(step.risk)
            readings = _unique(probe(replace(step, previous=previous, generator=generator)))
    except Exception as caught:
        error = caught
    seconds = synchronized_time(model) - start
    status, message = ("ok", "") if error is None else ("failed", _describe(error))
    mode = step.risk.mode
    return Measurement(step.index, name, status, message, mode, seconds, elapsed, readings), error


def _stand(risk: EmpiricalRisk) -> None:
    """Put the modules into the mode of the risk, for probes that call one of them directly."""
    for module in risk.model.modules():
        module.training = module.training if risk.mode == "mixed" else risk.mode == "train"


def _unique(readings: Iterable[Reading]) -> tuple[Reading, ...]:
    """Collect readings, and refuse two of one name: the second would hide the first in every table and figure."""
    collected = tuple(readings)
    names = [(reading.layer, reading.name) for reading in collected]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"a probe must give each (layer, name) once per step; got {twice} more than once")
    return collected


def _describe(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({frame[0].filename.rpartition('/')[2]}:{frame[0].lineno})" if frame else ""
    return f"{type(error).__name__}: {error}{place}"
