"""The laws of gated variables hold to the last digit on finite tables, and so does the chain rule over atoms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normlens.information import entropy
from normlens.information.mutual_information import table
from support.dependent_pairs import gated_table, merged, random_table, seeded

TABLE = torch.tensor([[0.4, 0.1], [0.1, 0.4]], dtype=torch.float64)
INFORMATION = 0.19274475702175753
ROUNDING = 1e-14  # sums of at most 49 terms below 3, in float64
SEEDS = range(20)


def of(joint: Tensor) -> float:
    return table(joint).value


def test_a_two_by_two_table_has_the_information_of_the_closed_form():
    found = table(TABLE)
    assert found.value == pytest.approx(INFORMATION, abs=ROUNDING)
    assert found.error == 0
    assert of(700 * TABLE) == pytest.approx(INFORMATION, abs=ROUNDING)


def test_a_product_of_margins_has_none_and_a_permutation_its_entropy():
    margins = random_table(4, 1, 0) @ random_table(1, 5, 1)
    assert of(margins) == pytest.approx(0, abs=ROUNDING)
    assert of(torch.eye(7)[torch.randperm(7, generator=seeded(0))]) == pytest.approx(math.log(7), abs=ROUNDING)


@pytest.mark.parametrize(
    ("keep", "apart", "at_zero", "shared"),
    [
        (0.5, 0.04818619, 0.01878041, 0.78951956),
        (0.8, 0.12335664, 0.08099643, 0.65459823),
        (0.95, 0.17395214, 0.15541804, 0.38162276),
    ],
)
def test_gates_leave_the_known_information_of_the_table(keep, apart, at_zero, shared):
    digits = 5.1e-9  # eight of them are given
    assert of(gated_table(TABLE, keep)) == pytest.approx(apart, abs=digits)
    assert of(merged(gated_table(TABLE, keep))) == pytest.approx(at_zero, abs=digits)
    assert of(gated_table(TABLE, keep, shared=True)) == pytest.approx(shared, abs=digits)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_independent_gates_multiply_the_information_by_keep_squared_without_an_atom_at_zero(seed, keep):
    joint = random_table(5, 6, seed)
    assert of(gated_table(joint, keep)) == pytest.approx(keep**2 * of(joint), abs=ROUNDING)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_with_an_atom_at_zero_less_than_keep_squared_is_left(seed, keep):
    joint = random_table(5, 6, seed)
    assert of(merged(gated_table(joint, keep))) < keep**2 * of(joint)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_shared_gate_adds_its_own_entropy(seed, keep):
    joint = random_table(5, 6, seed)
    expected = keep * of(joint) + entropy.binary(keep)
    assert of(gated_table(joint, keep, shared=True)) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_gated_variable_keeps_its_share(seed):
    joint, keep = random_table(5, 6, seed), 0.8
    one = torch.cat([(1 - keep) * joint.sum(0, keepdim=True), keep * joint])
    assert of(one) == pytest.approx(keep * of(joint), abs=ROUNDING)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 1), (3, 2), (0, 2)])
def test_the_chain_rule_over_atoms_is_an_identity(seed, first, second):
    """The first symbols are the atoms of x and y, and the others stand for the continuous parts."""
    joint = random_table(6, 7, seed)
    a = torch.cat([joint[:first], joint[first:].sum(0, keepdim=True)])
    b = torch.cat([joint[:, :second], joint[:, second:].sum(1, keepdim=True)], 1)
    both = torch.cat([a[:, :second], a[:, second:].sum(1, keepdim=True)], 1)
    total = (
        of(both)
        + a[:, second:].sum().item() * of(a[:, second:])
        + b[first:].sum().item() * of(b[first:])
        + joint[first:, second:].sum().item() * of(joint[first:, second:])
    )
    assert total == pytest.approx(of(joint), abs=ROUNDING)


def draws(joint: Tensor, n: int, repetitions: int) -> Tensor:
    cells = torch.multinomial(joint.flatten(), n * repetitions, replacement=True, generator=seeded(3))
    return torch.stack([c.bincount(minlength=joint.numel()) for c in cells.view(repetitions, n)]).view(-1, *joint.shape)


@pytest.mark.parametrize(
    ("joint", "above"), [(TABLE, 0.0), (random_table(5, 4, 2).sqrt(), 0.0), (torch.full((4, 5), 0.05), 0.15)]
)
def test_counted_tables_are_right_in_the_mean_and_their_error_is_the_spread(joint, above):
    """Without any dependence the error is too large, as a variance that is estimated below zero is cut off there."""
    n, repetitions = 1000, 1000
    found = [table(counts, samples=n) for counts in draws(joint, n, repetitions)]
    values = torch.tensor([f.value for f in found])
    spread = values.std().item()
    # The correction leaves the second order, about (cells / N)^2: below a tenth of a standard error here.
    assert values.mean().item() == pytest.approx(of(joint), abs=(0.1 + 4 / math.sqrt(repetitions)) * spread)
    errors = torch.tensor([f.error for f in found])
    ratio = errors.square().mean().sqrt().item() / spread
    assert -5 / math.sqrt(2 * repetitions) < ratio - 1 < above + 5 / math.sqrt(2 * repetitions)
    assert all(f.converged for f in found)


def test_the_correction_counts_the_occupied_rows_columns_and_cells():
    counts = torch.tensor([[10, 0, 0], [0, 5, 5], [0, 0, 0]])
    assert table(counts, samples=20).value == pytest.approx(of(counts) + (2 + 3 - 3 - 1) / 40, abs=ROUNDING)


def test_more_than_a_fortieth_of_the_samples_alone_in_their_cells_are_flagged():
    counts = torch.tensor([[1, 20], [17, 2]])
    assert table(counts, samples=40).converged
    assert table(counts - torch.tensor([[0, 1], [0, 0]]), samples=39).converged is False


def test_where_a_flag_is_raised_the_correction_leaves_a_bias():
    """Independent labels, 16 of each: the bias is .06 at two samples per cell and below .01 at five."""
    for per_cell, flagged, least, most in ((2, True, 0.05, 0.08), (5, False, 0.0, 0.01)):
        n = 256 * per_cell
        found = [table(c, samples=n) for c in draws(torch.full((16, 16), 1 / 256), n, 50)]
        assert {f.converged for f in found} == {not flagged}
        assert least < sum(f.value for f in found) / 50 < most


@pytest.mark.parametrize(
    "joint", [torch.ones(3), torch.zeros(2, 2), torch.tensor([[1.0, -0.1]]), torch.tensor([[math.nan, 1.0]])]
)
def test_what_is_no_table_is_refused(joint):
    with pytest.raises(ValueError, match=r"shape \(A, B\) and finite entries >= 0, not all zero; got shape"):
        table(joint)
