"""Estimate: no number without its error, its cost and whether the method that made it converged."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the number.
        error: one standard error, or a bound where the method has one; nan where the method cannot know.
        cost: what it took, in evaluations of the thing measured (gradients, matrix-vector products, samples).
        converged: whether the method met its own stopping rule; None for a method without one.
    """

    value: float
    error: float = math.nan
    cost: float = math.nan
    converged: bool | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        error = "" if math.isnan(self.error) else f" ± {self.error:.2g}"
        return f"{self.value:.6g}{error}" + (" (not converged)" if self.converged is False else "")
