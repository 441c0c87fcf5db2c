"""Finding: one thing that a run shows, in words, with the number it rests on."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from normlens.plot.style import clean, number

__all__ = ["SHAPES", "Finding", "Findings"]

SHAPES = {"sick": "✖", "look": "▲", "note": "●"}
"""The severities, worst first, each with its shape, so that none is told by color alone."""

_RANK = {severity: rank for rank, severity in enumerate(SHAPES)}


@dataclass(frozen=True)
class Finding:
    """What a rule found; ``sorted`` puts the worst first, and of equals the earliest, which is nearest to the cause.

    Attributes:
        severity: "sick" (the training is damaged), "look" (it may be), "note" (something to know).
        probe: whose readings show it; "" for the run as a whole.
        layer: the module, or "" for the whole network.
        step: optimizer steps at which it was first seen; None where that has no meaning.
        message: one sentence: what is the matter and why.
        evidence: numbers by name: the telling one first, its ``error`` and the ``threshold`` it crossed among the rest.
        advice: one sentence: what to do.
        rule: which rule said it; :func:`normlens.report.diagnose.diagnose` fills it in.

    Raises:
        ValueError: the severity is not one of the three.
    """

    severity: str
    probe: str
    layer: str
    step: int | None
    message: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""
    rule: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.severity not in _RANK:
            raise ValueError(f"severity must be one of {', '.join(_RANK)}; got {self.severity!r}")

    def __lt__(self, other: Finding) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, float, str, str, str]:
        step = math.inf if self.step is None else self.step
        return _RANK[self.severity], step, self.probe, self.layer, self.message

    @property
    def numbers(self) -> str:
        """The evidence in one line: ``fraction dead 0.281 ± 0.01 (threshold 0.1), channels 32``."""
        named = [(name, value) for name, value in self.evidence.items() if name not in ("error", "threshold")]
        parts = [f"{name.replace('_', ' ')} {number(value)}" for name, value in named]
        if parts:
            parts[0] += self._spread() + self._limit(named[0][1])
        return ", ".join(parts)

    def _spread(self) -> str:
        error = self.evidence.get("error", math.nan)
        return "" if math.isnan(error) else f" ± {number(error)}"

    def _limit(self, value: float) -> str:
        if not math.isfinite(value):
            return " (must be finite)"
        return f" (threshold {number(self.evidence['threshold'])})" if "threshold" in self.evidence else ""

    def __str__(self) -> str:
        where = " ".join(([self.layer] if self.layer else []) + ([] if self.step is None else [f"step {self.step}"]))
        at = f" [{where}]" if where else ""
        return f"{SHAPES[self.severity]} {self.severity}{at}: {self.message} {self.advice}".rstrip()

    def _repr_html_(self) -> str:
        where = " · ".join(([self.layer] if self.layer else []) + ([] if self.step is None else [f"step {self.step}"]))
        parts = [f"<b>{SHAPES[self.severity]} {self.severity}</b>", _text(where), _text(self.message)]
        parts += [f"<i>{_text(self.numbers)}</i>", _text(self.advice)]
        return "<p>" + "<br>".join(part for part in parts if part and part != "<i></i>") + "</p>"


class Findings(list[Finding]):
    """A list of findings that a notebook shows as text."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing found"

    def _repr_html_(self) -> str:
        return "".join(finding._repr_html_() for finding in self) or "<p>● nothing found</p>"


def _text(text: str) -> str:
    return html.escape(clean(text))
