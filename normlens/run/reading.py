"""Reading and Measurement: one answer of a probe, and all its answers at one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Measurement", "Reading", "Status"]

Status = str
"""``ok``; ``failed`` (the probe raised); ``starved`` (the time budget never allowed it); ``note`` (the lens itself)."""

_KINDS = "biufc"  # bool, integers, floats, complex: nothing that could hold an object
_WIDEST = {"c": 16}  # bytes of a number, 8 for all other kinds: long doubles differ from machine to machine


@dataclass(frozen=True)
class Reading:
    """One number or array that a probe read off the model.

    Attributes:
        name: what was read, e.g. ``"offset"``.
        value: a float, or an array with one named dimension for each axis; it is copied, so that a view of a live
            tensor does not change afterwards.
        layer: the module it belongs to, as in ``model.named_modules()``; "" for the whole network.
        units: the physical unit ("nats", "s"); None for a dimensionless number.
        error: one standard error of ``value``, or a bound; nan where the probe cannot know.
        dims: the names of the axes of ``value``, e.g. ``("channel",)``.
        n: the number of samples that it rests on; 0 where that has no meaning.
        stored: whether it goes into the run's file. One that does not is seen by the probe's next measurement alone,
            in ``previous.last``, e.g. eigenvectors to start from: they would swell the file. A resumed run lacks them.

    Raises:
        ValueError: the value is not numeric, or ``dims`` does not name every axis.
    """

    name: str
    value: float | NDArray[Any]
    layer: str = field(default="", kw_only=True)
    units: str | None = field(default=None, kw_only=True)
    error: float = field(default=math.nan, kw_only=True)
    dims: tuple[str, ...] = field(default=(), kw_only=True)
    n: int = field(default=0, kw_only=True)
    stored: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        array = np.asarray(self.value)
        if array.dtype.kind not in _KINDS or array.dtype.itemsize > _WIDEST.get(array.dtype.kind, 8):
            raise ValueError(
                f"the value of reading {self.name!r} must be numeric, of at most 64 bits (complex: 128); "
                f"got {array.dtype} ({type(self.value)}); convert it, e.g. with float() or astype('float64')"
            )
        if array.ndim != len(self.dims):
            raise ValueError(
                f"reading {self.name!r} needs one name in dims for each axis of its value: "
                f"got shape {array.shape} and dims {self.dims}; pass e.g. dims=('channel',)"
            )
        object.__setattr__(self, "value", array.copy() if array.ndim else array.item())
        object.__setattr__(self, "error", float(self.error))
        object.__setattr__(self, "n", int(self.n))

    @property
    def array(self) -> NDArray[Any]:
        """The value as an array, of no dimension for a scalar."""
        return np.asarray(self.value)


@dataclass(frozen=True)
class Measurement:
    """What one probe answered at one step, and what that cost.

    Attributes:
        step: optimizer steps taken before the measurement.
        probe: the probe's name.
        status: see :data:`Status`.
        message: why, when the status is not ``ok``.
        mode: "train", "eval" or "mixed": how the model stood while it was measured; "" where no model was run.
        seconds: wall time that the measurement took.
        elapsed: seconds of training before it, the lens's own time left out.
        readings: the answers.
    """

    step: int
    probe: str
    status: Status = "ok"
    message: str = ""
    mode: str = ""
    seconds: float = 0.0
    elapsed: float = 0.0
    readings: tuple[Reading, ...] = ()
