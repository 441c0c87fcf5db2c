"""The integers round as the real numbers do, for every input, and no smaller shift could."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from normlens.inference import quantize_affine
from normlens.inference.fixed_point import rounding_thresholds


def clipped(y, y_min=None, y_max=None):
    y = y if y_min is None else max(y, y_min)
    return y if y_max is None else min(y, y_max)


def rounded(k, b, x, y_min=None, y_max=None):
    return clipped(math.floor(Fraction(k) * x + Fraction(b) + Fraction(1, 2)), y_min, y_max)


def exact_offsets(k, b, x_max, n, multiplier):
    """All offsets that are exact with this shift and multiplier: theorem 2 by plain rational arithmetic."""
    s, xs = Fraction(2) ** n, range(-x_max, x_max + 1)
    half = s / 2 if n else Fraction(0)
    low = max(math.ceil(rounded(k, b, x) * s - multiplier * x - half) for x in xs)
    high = min(math.ceil((rounded(k, b, x) + 1) * s - multiplier * x - half) - 1 for x in xs)
    return low, high


def exhaustive(k, b, x_max, n):
    """Every multiplier that could be exact: |K - k S| < S / X, for two reals that round alike differ by less than 1."""
    s = 2**n
    low, high = math.floor(Fraction(k) * s - Fraction(s, x_max)), math.ceil(Fraction(k) * s + Fraction(s, x_max))
    offsets = {multiplier: exact_offsets(k, b, x_max, n, multiplier) for multiplier in range(low, high + 1)}
    return {multiplier: pair for multiplier, pair in offsets.items() if pair[0] <= pair[1]}


# (k, b, X) -> the smallest shift, its multiplier, all of its offsets, and the shift that theorem 1 says is enough
VECTORS = [
    ((0.37, 0.2, 7), 3, 3, (1, 1), 7),
    ((0.7310586, -0.123, 31), 8, 187, (-37, -31), 14),
    ((Fraction(1, 3), 0.1, 127), 8, 85, (-1, 0), 10),
    ((0.05, 1.31, 255), 12, 205, (5372, 5480), 14),
]


@pytest.mark.parametrize(("affine", "shift", "multiplier", "offsets", "enough"), VECTORS)
def test_the_vectors_of_the_theory_come_out(affine, shift, multiplier, offsets, enough):
    found = quantize_affine(*affine)
    assert (found.shift, found.multiplier, found.offsets, found.exact) == (shift, multiplier, offsets, True)
    assert offsets[0] <= found.offset <= offsets[1]
    assert found.shift <= enough


@pytest.mark.parametrize(("affine", "shift", "multiplier", "offsets", "enough"), VECTORS)
def test_no_smaller_shift_is_exact_by_exhaustive_rational_search(affine, shift, multiplier, offsets, enough):
    for n in range(shift):
        assert not exhaustive(*affine, n)
    assert exhaustive(*affine, shift)[multiplier] == offsets


@pytest.mark.parametrize(("affine", "enough"), [(vector[0], vector[4]) for vector in VECTORS])
def test_the_shift_of_theorem_1_is_enough_with_rounded_integers(affine, enough):
    k, b, x_max = Fraction(affine[0]), Fraction(affine[1]), affine[2]
    values = [k * x + b - Fraction(1, 2) for x in range(-x_max, x_max + 1)]
    distance = min(abs(value - round(value)) for value in values)
    assert 2**enough > (x_max + 1) / (2 * distance) >= 2 ** (enough - 1)
    multiplier, offset = round(k * 2**enough), round(b * 2**enough)
    low, high = exact_offsets(k, b, x_max, enough, multiplier)
    assert low <= offset <= high
    assert rounding_thresholds(k, b, x_max).at(enough).exact


def random_affine(seed):
    """A dyadic scale and shift from a linear congruence, so that the test draws from nothing global."""
    a = (1103515245 * (seed + 7) + 12345) % 2**31
    c = (1103515245 * a + 12345) % 2**31
    return Fraction(a, 2**30) - 1, Fraction(c, 2**29) - 2, 1 + seed % 12


@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_what_the_exhaustive_one_does(seed):
    k, b, x_max = random_affine(seed)
    found = quantize_affine(k, b, x_max)
    smallest = next(n for n in range(32) if exhaustive(k, b, x_max, n))
    assert found.exact
    assert found.shift == smallest
    every = exhaustive(k, b, x_max, smallest)
    assert every[found.multiplier] == found.offsets
    nearest = math.floor(k * 2**smallest + Fraction(1, 2))
    assert abs(found.multiplier - nearest) == min(abs(multiplier - nearest) for multiplier in every)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("limits", [(None, None), (-2, 3), (0, None), (None, 1), (0, 1), (1, 1)])
def test_the_integers_give_the_rounded_real_value_for_every_input(seed, limits):
    k, b, x_max = random_affine(seed)
    found = quantize_affine(4 * k, b, x_max, *limits)
    assert found.exact
    for x in range(-x_max, x_max + 1):
        assert clipped(found(x), *limits) == rounded(4 * k, b, x, *limits)


def test_clipping_asks_for_fewer_bits_and_never_for_more():
    affines = [random_affine(seed) for seed in range(40)]
    free = [quantize_affine(4 * k, b, x_max).shift for k, b, x_max in affines]
    bounded = [quantize_affine(4 * k, b, x_max, -1, 1).shift for k, b, x_max in affines]
    assert all(less <= more for less, more in zip(bounded, free, strict=True))
    assert sum(bounded) < sum(free)


def test_a_half_rounds_up_and_integers_need_no_shift():
    assert [quantize_affine(0.5, 0.0, 3)(x) for x in range(-3, 4)] == [-1, -1, 0, 0, 1, 1, 2]
    whole = quantize_affine(3.0, -2.0, 9)
    assert (whole.multiplier, whole.offset, whole.shift, whole.offsets) == (3, -2, 0, (-2, -2))


def test_what_is_exact_at_a_shift_is_so_at_every_larger_one():
    for seed in range(20):
        k, b, x_max = random_affine(seed)
        least = quantize_affine(k, b, x_max).shift
        assert all(rounding_thresholds(k, b, x_max).at(n).exact == (n >= least) for n in range(20))


@pytest.mark.parametrize(("affine", "shift"), [(vector[0], vector[1]) for vector in VECTORS])
def test_where_no_shift_is_exact_it_says_so_and_is_off_by_one_at_most(affine, shift):
    found = quantize_affine(*affine, max_shift=shift - 1)
    assert not found.exact
    assert found.shift == shift - 1
    off = {found(x) - rounded(*affine[:2], x) for x in range(-affine[2], affine[2] + 1)}
    assert off != {0}
    assert off <= {-1, 0, 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((math.nan, 0.0, 7), "finite scale and shift; got nan and 0.0"),
        ((1.0, math.inf, 7), "finite scale and shift"),
        ((1.0, 0.0, 0), "x_max of at least 1"),
        ((1.0, 0.0, 7, 3, 2), "y_min <= y_max; got x_max=7, y_min=3, y_max=2"),
        ((1e9, 0.0, 127), "below 2\\^30, so that 63 bits"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        quantize_affine(*arguments)


@pytest.mark.parametrize("max_shift", [-1, 32])
def test_a_shift_beyond_32_bit_integers_is_refused(max_shift):
    with pytest.raises(ValueError, match="max_shift from 0 to 31"):
        quantize_affine(0.5, 0.0, 7, max_shift=max_shift)
