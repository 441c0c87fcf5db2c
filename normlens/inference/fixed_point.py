"""FixedPointAffine: integers that round as a real scale and shift do, with the smallest shift that can."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FixedPointAffine", "Real", "Thresholds", "quantize_affine", "rounding_thresholds"]

Real: TypeAlias = "float | Fraction"


@dataclass(frozen=True)
class FixedPointAffine:
    """The integers of ``y = (multiplier x + offset + 2^(shift - 1)) >> shift``.

    Attributes:
        multiplier: ``K``.
        offset: ``B``.
        shift: ``n``; with 0 the power of two is left out.
        exact: whether ``y`` is the rounded real value for every admissible input.
        offsets: the least and the largest ``B`` that are exact with this ``K`` and ``n``; both ``offset`` if none is.
    """

    multiplier: int
    offset: int
    shift: int
    exact: bool
    offsets: tuple[int, int]

    def __call__(self, x: int) -> int:
        """Return ``y`` for one integer, unclipped."""
        return (self.multiplier * x + self.offset + (1 << self.shift >> 1)) >> self.shift


def quantize_affine(
    scale: Real, shift: Real, x_max: int, y_min: int | None = None, y_max: int | None = None, *, max_shift: int = 31
) -> FixedPointAffine:
    r"""Find the smallest shift ``n``, and integers ``K`` and ``B``, that round as the real affine map does.

    .. math:: (K x + B + 2^{n-1}) \gg n = \lfloor k x + b + \tfrac12 \rfloor \quad\text{for all integers } |x| \le X,

    after clipping both sides, if the output is clipped. The right side is computed in exact rational arithmetic from
    ``k`` and ``b`` as the floating-point numbers (or fractions) that they are; halves round up. For given ``n`` and
    ``K`` the exact ``B`` are the integers from :math:`\max_x(t_x S - S/2 - K x)` to :math:`\min_x((t_x + 1) S - S/2 - 1
    - K x)` with :math:`S = 2^n` and :math:`t_x` the right side. The length of that interval is concave in ``K``, so
    that a search by bisection finds an exact ``K``, the one nearest to ``k S``, or proves that there is none. What is
    exact at ``n`` is so at ``n + 1``: the smallest ``n`` is found by bisection, too.

    Where no ``n`` up to ``max_shift`` is exact, ``exact`` is False and the integers are the nearest at ``max_shift``:
    off by one for inputs that all but hit a half.

    Source: Lin, Sun, Xie, Zhou and Zhang, arXiv:2008.13128, without code; their own bound on bits was not at hand.

    Args:
        scale: ``k``.
        shift: ``b``, in units of the output.
        x_max: ``X``, at least 1.
        y_min: below which the output is clipped; None for no limit.
        y_max: above which it is.
        max_shift: the largest ``n`` that is tried, 0 to 31.

    Raises:
        ValueError: ``k`` or ``b`` is not finite, a limit makes no sense, or ``K x + B`` would leave 63 bits.
    """
    if not 0 <= max_shift <= 31:
        raise ValueError(f"quantize_affine needs max_shift from 0 to 31; got {max_shift}; 31 serves 32-bit integers")
    thresholds = rounding_thresholds(scale, shift, x_max, y_min, y_max)
    low, high, best = 0, max_shift, thresholds.at(max_shift)
    while best.exact and low < high:
        middle = (low + high) // 2
        found = thresholds.at(middle)
        low, high, best = (low, middle, found) if found.exact else (middle + 1, high, best)
    return best


@dataclass(frozen=True)
class Thresholds:
    """What the rounded values demand of ``K`` and ``B``.

    Attributes:
        scale: ``k``.
        shift: ``b``.
        x: the admissible inputs.
        t: the rounded and clipped output of each.
        bounded: which outputs must not fall short of ``t`` (first row) and must not exceed it (second row).
    """

    scale: Fraction
    shift: Fraction
    x: NDArray[np.int64]
    t: NDArray[np.int64]
    bounded: NDArray[np.bool_]

    def at(self, n: int) -> FixedPointAffine:
        """Return the integers with shift ``n`` whose multiplier is nearest to ``k 2^n`` among the exact ones.

        Args:
            n: the shift.
        """
        nearest = _round(self.scale * 2**n)
        exact = self._nearest_exact(nearest, n)
        multiplier = nearest if exact is None else exact
        offset = _round(self.shift * 2**n)
        if exact is None:
            return FixedPointAffine(multiplier, offset, n, exact=False, offsets=(offset, offset))
        low, high = self._offsets(multiplier, n)
        low, high = (int(side) if math.isfinite(side) else offset for side in (low, high))
        return FixedPointAffine(multiplier, min(max(offset, low), high), n, exact=True, offsets=(low, high))

    def _offsets(self, multiplier: int, n: int) -> tuple[float, float]:
        """Return the least and the largest exact offset, the first above the second where there is none."""
        floor = self.t * 2**n - (1 << n >> 1) - multiplier * self.x
        above, below = floor[self.bounded[0]], floor[self.bounded[1]] + (2**n - 1)
        return (int(above.max()) if above.size else -math.inf), (int(below.min()) if below.size else math.inf)

    def _room(self, multiplier: int, n: int) -> float:
        """Return how far the exact offsets reach: a concave function of the multiplier, exact from 0 on."""
        low, high = self._offsets(multiplier, n)
        return high - low

    def _nearest_exact(self, start: int, n: int) -> int | None:
        if self._room(start, n) >= 0:
            return start
        uphill = next((d for d in (1, -1) if self._room(start + d, n) > self._room(start, n)), 0)
        if not uphill:
            return None
        reach = 1
        while self._rises(start, reach, uphill, n):  # until it holds exact ones or the way down begins
            reach *= 2
        low, high = 0, reach
        while low < high:  # the first that is exact or from which it no longer rises
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._rises(start, middle, uphill, n) else (low, middle)
        found = start + uphill * low
        return found if self._room(found, n) >= 0 else None

    def _rises(self, start: int, steps: int, way: int, n: int) -> bool:
        here = self._room(start + way * steps, n)
        return here < 0 and self._room(start + way * (steps + 1), n) > here


def rounding_thresholds(
    scale: Real, shift: Real, x_max: int, y_min: int | None = None, y_max: int | None = None
) -> Thresholds:
    """Round ``k x + b`` for all integers ``|x| <= x_max``, exactly, halves upward.

    Args:
        scale: ``k``.
        shift: ``b``.
        x_max: ``X``.
        y_min: see :func:`quantize_affine`.
        y_max: see there.

    Raises:
        ValueError: see there.
    """
    if not (math.isfinite(scale) and math.isfinite(shift)):
        raise ValueError(
            f"quantize_affine needs a finite scale and shift; got {scale} and {shift}; look for nan upstream"
        )
    if x_max < 1 or (y_min is not None and y_max is not None and y_min > y_max):
        raise ValueError(
            f"quantize_affine needs x_max of at least 1 and y_min <= y_max; got x_max={x_max}, y_min={y_min}, "
            f"y_max={y_max}; give the range of the integers, e.g. 128, -128, 127"
        )
    k, b = Fraction(scale), Fraction(shift)
    if abs(k) * x_max + abs(b) >= 2**30 or x_max >= 2**30:
        raise ValueError(
            f"quantize_affine needs |scale| x_max + |shift| below 2^30, so that 63 bits hold every product; got "
            f"{float(abs(k) * x_max + abs(b)):.3g} with x_max={x_max}; choose a larger output scale"
        )
    common = k.denominator * b.denominator
    slope, start = 2 * k.numerator * b.denominator, 2 * b.numerator * k.denominator + common
    rounded = [(slope * x + start) // (2 * common) for x in range(-x_max, x_max + 1)]
    low, high = (-(2**31) if y_min is None else y_min), (2**31 if y_max is None else y_max)  # t is less than 2^30
    t = np.array(rounded, dtype=np.int64).clip(low, high)
    bounded = np.stack([t > low, t < high])
    return Thresholds(k, b, np.arange(-x_max, x_max + 1), t, bounded)


def _round(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
