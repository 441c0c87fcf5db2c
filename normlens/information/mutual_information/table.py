"""Mutual information of two discrete variables from their joint table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information.samples import Array, Labels

__all__ = ["ALONE", "Counted", "count", "error_of", "table"]

ALONE = 0.025  # the part of the samples alone in their cell above which the correction leaves .02 nats and more


def table(joint: Tensor, *, samples: int | None = None) -> Estimate:
    r"""Return the mutual information in nats of two discrete variables, :math:`\sum p_{ab}\ln(p_{ab}/(p_a p_b))`.

    With ``samples`` the table was counted, and Miller and Madow's correction :math:`(m_a + m_b - m_{ab} - 1)/(2N)`
    with the numbers m of occupied rows, columns and cells is added. Its error is
    :math:`\sqrt{(\mathrm{Var}\,i - d/N)_+/N + d/(2N^2)}` with i the pointwise information and d the degrees of freedom
    :math:`(m_a-1)(m_b-1)`: the delta method without what sampling adds to the variance, and what is left where the
    variables are independent (the spread of a chi-square over 2N).

    Args:
        joint: (A, B), probabilities or counts; they are divided by their sum.
        samples: the number N the table was counted from; None for an exact table.

    Returns:
        The information; its error is 0 for an exact table; ``converged`` is False where more than a fortieth
        of the samples are alone in their cell: so many cells are unseen (Good and Turing) that a bias of .02 is left.

    Raises:
        ValueError: the table is not two-dimensional, or has a negative or non-finite entry, or sums to zero.

    Source: Miller, "Note on the bias of information estimates", 1955.
    """
    p = joint.detach().cpu().double().numpy()
    if p.ndim != 2 or not (p >= 0).all() or not 0 < p.sum() < math.inf:
        got = f"shape {tuple(p.shape)} with the sum {p.sum():g}"
        raise ValueError(f"a joint table needs shape (A, B) and finite entries >= 0, not all zero; got {got}")
    p = p / p.sum()
    ratio = np.divide(p, np.outer(p.sum(1), p.sum(0)), out=np.ones_like(p), where=p > 0)
    information = float((p * np.log(ratio)).sum())
    if samples is None:
        return Estimate(information, 0.0, 0.0)
    correction, degrees, dense = _correction(p * samples, samples)
    variance = float((p * (np.log(ratio) - information) ** 2).sum())
    return Estimate(information + correction, error_of(variance, degrees, samples), samples, dense)


@dataclass(frozen=True)
class Counted:
    """A table counted from labels, sample by sample.

    Attributes:
        pointwise: (N,), the logarithm of each sample's joint frequency over the product of its two frequencies.
        correction: Miller and Madow's, to be added to the mean.
        degrees: of freedom of the table.
        dense: whether at most a fortieth of the samples are alone in their cell.
    """

    pointwise: Array
    correction: float
    degrees: int
    dense: bool


def count(a: Labels, b: Labels) -> Counted:
    """Count the table of N pairs of labels."""
    rows, row = np.unique(a, return_inverse=True)
    columns, column = np.unique(b, return_inverse=True)
    counts = np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns)).astype(np.float64)
    counts = counts.reshape(len(rows), len(columns))
    expected = np.outer(counts.sum(1), counts.sum(0)) / len(a)
    pointwise = np.log(counts[row, column] / expected[row, column])
    return Counted(np.asarray(pointwise), *_correction(counts, len(a)))


def _correction(counts: Array, samples: int) -> tuple[float, int, bool]:
    """Return Miller and Madow's correction, the degrees of freedom, and whether there are enough samples for it."""
    rows, columns = int((counts.sum(1) > 0).sum()), int((counts.sum(0) > 0).sum())
    correction = (rows + columns - int((counts > 0).sum()) - 1) / (2 * samples)
    return correction, (rows - 1) * (columns - 1), int(((counts > 0) & (counts < 1.5)).sum()) <= ALONE * samples


def error_of(variance: float, degrees: int, samples: int) -> float:
    """Return the standard error of a mean of terms, of which a table of so many degrees of freedom is a part."""
    return math.sqrt(max(variance - degrees / samples, 0.0) / samples + degrees / (2 * samples**2))
