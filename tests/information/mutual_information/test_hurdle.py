"""The hurdle estimator finds the information that quadrature gives for gated variables, and is exact on atoms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from normlens.information.mutual_information import hurdle, table
from normlens.information.mutual_information.samples import most_ties
from support.dependent_pairs import (
    gates,
    gaussian_information,
    gaussian_pair,
    random_table,
    rectified_information,
    seeded,
)

ROUNDING = 1e-12


def rectified(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x, y = gaussian_pair(0.8, n, seed)
    return x.relu(), y.relu()


def normalized(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()


def gated(x: Tensor, y: Tensor, keep: float, seed: int = 1000) -> tuple[Tensor, Tensor]:
    first, second = gates(keep, len(x), seed)
    return x * first / keep, y * second / keep


def assert_finds(truth: float, estimates: list[float], within: float = 0.0) -> None:
    """Their mean is within three standard errors, and a bias allowed beyond them."""
    values = np.asarray(estimates)
    assert abs(values.mean() - truth) <= 3 * values.std(ddof=1) / math.sqrt(len(values)) + within


@pytest.mark.parametrize(("keep", "truth"), [(0.8, 0.155593), (0.95, 0.278955)])
def test_dropout_behind_relu_leaves_the_information_of_the_quadrature(keep, truth):
    assert rectified_information(0.8, keep) == pytest.approx(truth, abs=5.1e-7)
    found = [hurdle(*gated(*rectified(4000, seed), keep, seed + 100)).value for seed in range(12)]
    assert_finds(truth, found, within=0.005)
    assert np.mean(found) < keep**2 * 0.346418 - 0.02  # what keep squared would leave


def test_dropout_behind_a_normalized_relu_leaves_keep_squared_of_it():
    """Three labels each: dropped, the atom that the normalization moved, and continuous."""
    assert rectified_information(0.8) == pytest.approx(0.346418, abs=5.1e-7)
    found = []
    for seed in range(12):
        x, y = rectified(4000, seed)
        found.append(hurdle(*gated(normalized(x), normalized(y), 0.8, seed + 100)).value)
    assert_finds(0.64 * 0.346418, found, within=0.005)


def test_one_estimate_behind_a_normalized_relu_lies_within_three_of_its_own_errors():
    x, y = rectified(8000, 3)
    found = hurdle(*gated(normalized(x), normalized(y), 0.8))
    assert abs(found.value - 0.64 * 0.346418) < 3 * found.error
    assert 0.005 < found.error < 0.02
    assert found.cost == 8000
    assert found.converged


@pytest.mark.parametrize(("rho", "keep"), [(0.6, 0.5), (0.9, 0.8), (0.0, 0.5)])
def test_gated_gaussians_keep_keep_squared(rho, keep):
    truth = keep**2 * gaussian_information(rho)
    pairs = [
        (*gated(*gaussian_pair(rho, 3000, seed), keep, seed + 50), gates(keep, 3000, seed + 50)) for seed in range(12)
    ]
    assert_finds(truth, [hurdle(x, y).value for x, y, _ in pairs], within=0.005)
    assert_finds(truth, [hurdle(x, y, keep=keep).value for x, y, keep in pairs], within=0.005)


def test_known_gates_give_what_gated_variables_and_their_gates_share():
    found = []
    for seed in range(12):
        x, y = rectified(4000, seed)
        found.append(hurdle(*gated(x, y, 0.8, seed + 100), keep=gates(0.8, 4000, seed + 100)).value)
    assert_finds(0.64 * 0.346418, found, within=0.005)


def test_known_gates_weigh_the_estimate_of_the_kept_pairs_by_their_part():
    x, y = gaussian_pair(0.9, 1000)
    keep = gates(0.5, 1000)
    both = keep[0] & keep[1]
    found, kept = hurdle(x * keep[0], y * keep[1], keep=keep), hurdle(x[both], y[both])
    part = both.double().mean().item()
    assert found.value == pytest.approx(part * kept.value, rel=ROUNDING)
    variance = part * (1000 * part * kept.error**2 + kept.value**2) - found.value**2
    assert found.error == pytest.approx(math.sqrt(variance / 1000), rel=1e-9)
    assert found.cost == 1000


def test_known_gates_weigh_the_correction_of_the_table_too():
    x, y = rectified(400, 0)
    keep = gates(0.5, 400)
    both = keep[0] & keep[1]
    part = both.double().mean().item()
    assert hurdle(x * keep[0], y * keep[1], keep=keep).value == pytest.approx(part * hurdle(x[both], y[both]).value)


def test_variables_of_atoms_alone_give_the_corrected_table():
    counts = (1000 * random_table(4, 5, 0)).long() + 4
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    x, y = (values.flatten().repeat_interleave(counts.flatten()) for values in (rows, columns))
    found, expected = hurdle(x, y), table(counts, samples=len(x))
    assert found.value == pytest.approx(expected.value, abs=ROUNDING)
    assert found.error == pytest.approx(expected.error, rel=1e-9)


def test_variables_without_atoms_give_scikit_learn_s_estimate():
    """Both see the same neighbors but where their rounding differs: at most a few terms of a thousand."""
    x, y = gaussian_pair(0.7, 1000)
    scores = [torch.special.ndtri((v.argsort().argsort() + 0.5) / 1000).numpy() for v in (x, y)]
    theirs = mutual_info_regression(scores[0][:, None], scores[1], n_neighbors=5, random_state=0)[0]
    assert hurdle(x, y, k=5).value == pytest.approx(theirs, abs=5e-3 * 0.2)


def test_a_half_gaussian_half_binary_variable_has_the_information_of_the_closed_form():
    """Gao et al., first experiment: a continuous and a discrete channel, one of them by the toss of a coin."""
    flipped, tossed = 0.1, []
    truth = -0.25 * math.log(1 - 0.81) + math.log(2)
    truth += 0.5 * (math.log(2) + (1 - flipped) * math.log(1 - flipped) + flipped * math.log(flipped))
    for seed in range(12):
        x, y = gaussian_pair(0.9, 2000, seed)
        coin, sign, flip = torch.rand(3, 2000, generator=seeded(seed + 70))
        sign = (sign < 0.5) * 2.0 - 1
        y = torch.where(coin < 0.5, y, sign * torch.where(flip < flipped, -1.0, 1.0))
        tossed.append(hurdle(torch.where(coin < 0.5, x, sign), y).value)
    assert_finds(truth, tossed, within=0.01)


def test_the_error_is_the_spread_that_repetition_shows():
    """The terms of neighbors are not quite independent: a tenth, and 1.5 of what 100 repetitions leave open."""
    found = [hurdle(*gated(*gaussian_pair(0.6, 500, seed), 0.8, seed + 500)) for seed in range(100)]
    spread = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.1 + 1.5 / math.sqrt(200))


def test_increasing_maps_that_take_zero_along_change_nothing():
    x, y = gated(*gaussian_pair(0.8, 800), 0.7)
    found = hurdle(x, y)
    assert hurdle(x.exp(), y**3) == found
    assert hurdle(x / 0.7, y) == found
    assert hurdle(y, x).value == pytest.approx(found.value, abs=ROUNDING)


def test_a_negative_zero_is_the_same_atom():
    x, y = gaussian_pair(0.8, 800)
    first, second = gates(0.7, 800)
    signed = hurdle(x * first, y * second)
    assert torch.signbit((x * first)[~first]).any()
    assert signed == hurdle(torch.where(first, x, 0.0), torch.where(second, y, 0.0))


def test_atoms_are_named_in_the_precision_of_the_tensor():
    x, y = rectified(1000, 0)
    x, y = (x - 0.7).float(), y.float()
    assert hurdle(x, y, atoms=((-0.7,), (0.0,))) == hurdle(x, y)
    assert hurdle(x, y, atoms=((-0.7, 123.0), (0.0,))) == hurdle(x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_that_rounding_made_equal_are_no_atoms(dtype):
    """In bfloat16 a value of 2000 occurs up to ten times; taken for atoms the estimate would be .3 too large."""
    x, y = gaussian_pair(0.9, 2000)
    exact, found = hurdle(x, y), hurdle(x.to(dtype), y.to(dtype))
    assert most_ties(x.to(dtype).double().numpy())[1] > 3
    assert found.converged
    assert found.value == pytest.approx(exact.value, abs=exact.error)
    assert hurdle(x.to(dtype), y.to(dtype), atoms=((), ())) == found


def test_an_atom_too_rare_to_be_told_does_no_harm():
    """Nine of a thousand are dropped: named or not, the zeros tell the same."""
    x, y = gaussian_pair(0.7, 1000)
    x[torch.randperm(1000, generator=seeded(0))[:9]] = 0
    named, found = hurdle(x, y, atoms=((0.0,), ())), hurdle(x, y)
    assert found.value == pytest.approx(named.value, abs=named.error / 2)
    assert named != found


def test_a_constant_has_no_information():
    x, _ = gaussian_pair(0.0, 200)
    assert hurdle(x, torch.full_like(x, 3.0)).value == 0
    assert hurdle(torch.ones(20), torch.ones(20)).value == 0


def test_variables_that_hardly_ever_are_continuous_together_are_flagged():
    x, y = torch.zeros(100), torch.zeros(100)
    x[:2] = y[:2] = torch.tensor([0.3, 0.7])
    assert hurdle(x, y).converged is False
    x[:1] = y[1:2] = 0
    assert hurdle(x, y).value == pytest.approx(table(torch.tensor([[98, 1], [1, 0]]), samples=100).value)


def test_estimates_repeat_to_the_bit_and_leave_the_global_state_alone():
    x, y = (v.bfloat16() for v in gated(*gaussian_pair(0.8, 500), 0.7))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert hurdle(x, y, seed=1) == hurdle(x, y, seed=1)
    assert hurdle(x, y, seed=1) != hurdle(x, y, seed=2)  # which of two equal values comes first
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_value_that_repeats_and_is_not_named_is_refused():
    x, y = gaussian_pair(0.8, 100)
    x[:3] = 0
    assert hurdle(x, y, atoms=((), ())) == hurdle(x, y)
    x[:4] = 0
    with pytest.raises(ValueError, match=r"at most 3 times; 0 occurs 4 times; name it among the atoms"):
        hurdle(x, y, atoms=((), (0.0,)))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 2), r"shape \(N,\) with N > 1; got \(3, 2\) and \(3, 2\)"),
        (torch.zeros(3), torch.zeros(4), r"got \(3,\) and \(4,\); pass one channel"),
        (torch.zeros(1), torch.zeros(1), r"N > 1; got \(1,\)"),
        (torch.tensor([0.0, math.nan, 1.0]), torch.tensor([math.inf, 0.0, 1.0]), "finite; 2 of 3 pairs are not"),
    ],
)
def test_what_are_no_two_variables_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        hurdle(x, y)


def test_gates_that_are_none_are_refused():
    x, y = gaussian_pair(0.5, 10)
    with pytest.raises(
        ValueError, match=r"two boolean tensors of shape \(10,\); got torch.float32 of shape \(10,\) and"
    ):
        hurdle(x, y, keep=(torch.ones(10), torch.ones(10, dtype=torch.bool)))
    closed = torch.arange(10) < 3
    with pytest.raises(ValueError, match="more than k = 3 pairs; they keep 3; take more samples"):
        hurdle(x, y, keep=(closed, closed))
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        hurdle(x, y, k=0)
