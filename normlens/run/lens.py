"""Lens: the one line in the user's training loop."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from normlens.risk import EmpiricalRisk
from normlens.run.budget import Budget
from normlens.run.clock import Clock
from normlens.run.header import session_header
from normlens.run.measure import Activations, measure
from normlens.run.probe import Previous, Probe, Step, named_probes, wants
from normlens.run.reading import Measurement, Reading
from normlens.run.recorder import Recorder
from normlens.run.schedule import every as every_n
from normlens.run.store import Run
from normlens.run.update import UpdateTracker
from normlens.typing import Batch, Data, Loss, Named, Schedule

__all__ = ["Lens"]


class Lens:
    """Watches a model while it trains, without changing one bit of the training.

    ::

        with nl.Lens(model, loss, data=probe_batch, probes=[nl.probes.Elimination()], out="runs/bn") as lens:
            for x, y in loader:
                ...
                optimizer.step()
                lens.step(loss=value, batch=(x, y))

    Nothing hangs on the model: it can be saved, copied and compiled meanwhile. With ``NORMLENS_DISABLE=1`` in the
    environment a lens does nothing at all.

    Args:
        model: the model in training, compiled or wrapped or not.
        loss: ``loss(outputs, targets)`` -> mean over the batch.
        data: the fixed probe data: one batch, a sequence of batches, or a loader that can be iterated again. None
            measures on the training batch handed to :meth:`step`, where drift is mostly sampling noise.
        probes: what to measure.
        out: the run's file (``.sqlite`` may be left out); None keeps it in a temporary file and says where.
        every: a number of optimizer steps between measurements, or a schedule from :mod:`normlens.run.schedule`.
        budget: the share of the bare training time that measuring may take, e.g. 0.10; None for no limit.
        min_runs: measurements of each probe whatever they cost: 1 = the first step, 2 = the first and the last.
        optimizer: lets probes read the learning rate.
        mode: "train", "eval", or None to measure the model as it stands.
        forward: ``forward(model, inputs) -> outputs`` where the model is not simply called with the inputs.
        on_error: "warn" (a failing probe is recorded, warned of once, and the training goes on) or "raise".
        seed: of the probes' randomness and of dropout in our own forward passes.
        name: how reports call the run; None for the file's name.
        config: facts to keep with the run (data, norm, learning rate and so on), JSON-able.
        resume: continue the run in ``out`` instead of refusing it.
        first_step: optimizer steps taken already; None for 0, or for the last recorded step when resuming. Records
            of earlier sessions from there on are hidden.

    Raises:
        RunExistsError: ``out`` holds a run and ``resume`` is False.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        data: Data | None = None,
        *,
        probes: Sequence[Probe],
        out: str | os.PathLike[str] | None = None,
        every: int | Schedule = 100,
        budget: float | None = None,
        min_runs: Literal[0, 1, 2] = 0,
        optimizer: torch.optim.Optimizer | None = None,
        mode: Literal["train", "eval"] | None = None,
        forward: Callable[[torch.nn.Module, Any], Any] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        seed: int = 0,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        resume: bool = False,
        first_step: int | None = None,
    ) -> None:
        _check(min_runs, on_error)
        self._model, self._optimizer, self._data, self._seed = model, optimizer, data, seed
        self._probes = named_probes(probes)
        self._due: Schedule = every_n(every) if isinstance(every, int) else every
        self._budget = Budget(budget, self._probes)
        self._min_runs, self._raising = min_runs, on_error == "raise"
        self._risk = partial(EmpiricalRisk, model, loss, forward=forward, mode=mode, seed=seed)
        self._risk(data)  # refuses bad arguments now, not in mid-training
        self._update_users = [name for name, probe in self._probes.items() if getattr(probe, "uses_update", False)]
        self._update = UpdateTracker(model) if self._update_users else None
        self._measured_at, self._warned, self._clock = dict.fromkeys(self._probes, -1), set[str](), Clock()
        self.disabled = os.environ.get("NORMLENS_DISABLE", "") not in ("", "0")
        self._closed = self.disabled
        self.index = self._first_step = first_step or 0
        settings = {"schedule": repr(self._due), "budget": budget, "min_runs": min_runs, "seed": seed, "name": name}
        if not self.disabled:
            header = session_header(model, self._probes, settings, config or {})
            self._recorder = Recorder(out, header, resume=resume, first_step=first_step, raising=self._raising)
            self.index = self._first_step = self._recorder.first_step

    @property
    def run(self) -> Run:
        """What was recorded so far, for reading.

        Raises:
            RuntimeError: the lens is disabled and records nothing.
        """
        if self.disabled:
            raise RuntimeError("a disabled lens records nothing; unset NORMLENS_DISABLE to have a run")
        return Run(self._recorder.path)

    @property
    def overhead(self) -> float:
        """Seconds of measuring for each second of bare training, so far."""
        return self._clock.overhead

    def start(self) -> Self:
        """Measure the model as it is before the first step, if that is due; ``with`` calls this."""
        if self._closed:
            return self
        self._clock.start()
        if self._data is not None and (self._due(self.index) or self._min_runs >= 1):
            self._measure(None, None, forced=self._min_runs >= 1)
        if self._update is not None and self._data is not None and self._due(self.index + 1):
            self._remember(None, None)
        return self

    def step(self, loss: Tensor | float | None = None, batch: Batch | None = None) -> None:
        """Tell the lens that the optimizer has made a step; it measures if that is due.

        Args:
            loss: the training loss of this step, to be recorded.
            batch: the training batch, for probes that look at it, and as probe data if the lens has none.
        """
        if self._closed or not self._clock.running:
            self._not_running()
            if self._closed:
                return
        self.index += 1
        if self._due(self.index):
            self._measure(loss, batch)
        if self._update is not None and self._due(self.index + 1):
            self._remember(loss, batch)

    def log(self, name: str, value: float, *, error: float = math.nan, units: str | None = None, n: int = 0) -> None:
        """Record a number of your own at the present step, under the probe name ``user``.

        Args:
            name: e.g. "test_accuracy"; reports show it.
            value: the number.
            error: its standard error, if known.
            units: its unit.
            n: the number of samples behind it.
        """
        if not self._closed:
            reading = Reading(name, float(value), error=error, units=units, n=n)
            self._recorder.write(
                [Measurement(self.index, "user", elapsed=self._clock.bare_seconds, readings=(reading,))]
            )

    def close(self, *, final: bool = True) -> None:
        """Measure a last time if ``min_runs`` asks for it, say what never ran, and close the file.

        Args:
            final: False leaves the last measurement out, as after an error.
        """
        if self._closed:
            return
        try:
            if final and self._min_runs >= 2 and self._data is not None:
                self._measure(None, None, forced=True)
            starved = self._budget.starved().items()
            self._recorder.write([Measurement(self.index, name, "starved", why) for name, why in starved])
            self._recorder.write([self._summary()])
        finally:
            self._closed = True
            self._recorder.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close(final=False)  # Python calls no __exit__ then
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(final=kind is None)

    def _measure(self, loss: Tensor | float | None, batch: Batch | None, *, forced: bool = False) -> None:
        """Measure every probe that can pay (or all, when forced), and write what they answered as one transaction."""
        elapsed = self._clock.bare_seconds
        here = self.index
        due = [name for name, probe in self._probes.items() if self._measured_at[name] != here and wants(probe, here)]
        chosen = [name for name in due if forced or self._affords(name, loss, batch)]
        if not chosen:
            return  # before anything is built: a probe that waits for its credit may be due at every step
        done: list[Measurement] = []
        with self._clock.measuring(self._model):
            try:
                step = self._moment(loss, batch, None if self._update is None else self._update.take(self.index))
                for name in chosen:
                    self._measure_one(name, self._probes[name], step, elapsed, done)
            except Exception as error:
                if self._raising:
                    raise
                message = f"{type(error).__name__}: {error}"
                done.append(Measurement(self.index, "lens", "failed", message, elapsed=elapsed))
                self._warn_once("lens", f"not all could be measured at step {self.index}: {message}")
            finally:
                if done:
                    self._recorder.write(done)

    def _measure_one(self, name: str, probe: Probe, step: Step, elapsed: float, done: list[Measurement]) -> None:
        previous = self._recorder.previous(name)
        result, error = measure(self._model, probe, name, step, previous, elapsed=elapsed, seed=self._seed)
        done.append(result)
        self._budget.charge(name, result.seconds)
        self._measured_at[name] = self.index
        if error is not None and self._raising:
            raise error
        if error is not None:
            advice = "It is recorded and the training goes on; on_error='raise' would stop here."
            self._warn_once(name, f"probe {name!r} failed at step {self.index}: {result.message}. {advice}")

    def _moment(self, loss: Tensor | float | None, batch: Batch | None, update: Named | None = None) -> Step:
        data = batch if self._data is None else self._data
        if data is None:
            raise ValueError("there are no probe data: pass data= to the lens or batch= to step")
        risk = self._risk(data)
        value = None if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
        own = torch.Generator()  # each probe gets its own, and its own previous readings, when its turn comes
        return Step(self.index, risk, Activations(risk), Previous(), self._optimizer, own, batch, value, update)

    def _affords(self, name: str, loss: Tensor | float | None, batch: Batch | None, *, ahead: int = 0) -> bool:
        """Say whether a probe can pay now, or could some steps ahead."""
        steps, elapsed = self.index - self._first_step, self._clock.bare_seconds
        step_seconds = elapsed / steps if steps else math.inf
        then = elapsed + (ahead * step_seconds if steps else 0.0)
        return self._budget.allows(name, then, step_seconds, lambda: self._ask_cost(name, loss, batch))

    def _ask_cost(self, name: str, loss: Tensor | float | None, batch: Batch | None) -> float:
        """Ask a probe once for its prior cost; one that cannot say is measured, and its failure, if any, recorded."""
        with self._clock.measuring(self._model):
            try:
                return self._probes[name].cost(self._moment(loss, batch))
            except Exception as error:
                self._warn_once(f"{name} cost", f"probe {name!r} cannot say its cost: {type(error).__name__}: {error}")
                return 0.0

    def _remember(self, loss: Tensor | float | None, batch: Batch | None) -> None:
        """Keep the parameters of the step before a due one, if a probe that wants the update will have the credit."""
        # Two steps ahead: the credit grows until then.
        if self._update is not None and any(self._affords(n, loss, batch, ahead=2) for n in self._update_users):
            with self._clock.measuring(self._model):
                self._update.remember(self.index)

    def _summary(self) -> Measurement:
        elapsed, readings = self._clock.bare_seconds, self._clock.readings()
        return Measurement(self.index, "lens", message="closed", elapsed=elapsed, readings=readings)

    def _not_running(self) -> None:
        if not self._closed:
            self._clock.start()  # used without `with`: the clock runs from the first step
        elif not self.disabled:
            self._warn_once("closed", "the lens is closed: nothing is recorded any more")

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"normlens: {message}", RuntimeWarning, stacklevel=5)


def _check(min_runs: int, on_error: str) -> None:
    if min_runs not in (0, 1, 2):
        raise ValueError(f"min_runs must be 0, 1 (the first step) or 2 (the first and the last); got {min_runs!r}")
    if on_error not in ("warn", "raise"):
        raise ValueError(f"on_error must be 'warn' or 'raise'; got {on_error!r}")
