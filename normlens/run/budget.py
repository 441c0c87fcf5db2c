"""The time budget: each probe earns credit while the training runs, and is measured when it can pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["Budget"]


class Budget:
    """A share of the training's time, divided evenly among the probes.

    A probe's credit is ``fraction / probes * training_seconds - spent``. It may run once that covers what it is
    expected to cost: its last measurement, or before the first one its prior cost. Credit for each probe, not one
    pot: with one pot the cheap probes drink it, the costly one starves, and then overshoots.

    Args:
        fraction: of the bare training time, e.g. 0.10; None for no limit.
        names: the probes.

    Raises:
        ValueError: ``fraction`` is not positive.
    """

    def __init__(self, fraction: float | None, names: Iterable[str]) -> None:
        if fraction is not None and not fraction > 0:
            raise ValueError(
                f"budget must be a positive fraction of training time, e.g. 0.10, or None for no limit; got {fraction}"
            )
        self.fraction = fraction
        self._spent = dict.fromkeys(names, 0.0)
        self._last: dict[str, float] = {}
        self._prior: dict[str, float] = {}
        self._denied: dict[str, tuple[float, float]] = {}

    def credit(self, name: str, training_seconds: float) -> float:
        """Return the seconds that the probe has earned and not yet spent."""
        if self.fraction is None:
            return float("inf")
        return self.fraction / len(self._spent) * training_seconds - self._spent[name]

    def expected(self, name: str, prior_seconds: float) -> float:
        """Return what the next measurement should cost: as much as the last one, or the prior before the first."""
        return self._last.get(name, prior_seconds)

    def affords(self, name: str, training_seconds: float, prior_seconds: float) -> bool:
        """Say whether the probe's credit covers its next measurement."""
        return self.credit(name, training_seconds) >= self.expected(name, prior_seconds)

    def allows(self, name: str, training_seconds: float, step_seconds: float, cost: Callable[[], float]) -> bool:
        """Say whether a probe may be measured now, and remember it if not.

        Args:
            name: the probe.
            training_seconds: the bare training time so far.
            step_seconds: that of one training step, which stands for one evaluation of the gradient.
            cost: asked once for the prior cost, in evaluations of the gradient.
        """
        if self.fraction is None:
            return True
        if name not in self._prior:
            self._prior[name] = cost()
        prior = self._prior[name] * step_seconds
        if self.affords(name, training_seconds, prior):
            return True
        self._denied[name] = (self.expected(name, prior), self.credit(name, training_seconds))
        return False

    def starved(self) -> dict[str, str]:
        """Say of every probe that was never measured because it could not pay, what it lacked."""
        message = "one measurement is expected to cost {:.3g} s, its share of the budget came to {:.3g} s"
        return {name: message.format(*lack) for name, lack in self._denied.items() if name not in self._last}

    def charge(self, name: str, seconds: float) -> None:
        """Book what a measurement has really cost."""
        self._spent[name] += seconds
        self._last[name] = seconds
