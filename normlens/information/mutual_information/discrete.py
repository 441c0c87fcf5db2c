"""Mutual information of a class label and a variable."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information.chain_rule import chain_terms
from normlens.information.mutual_information.samples import CONTINUOUS, frequent_values, labels_of, pair_of

__all__ = ["discrete"]


def discrete(labels: Tensor, y: Tensor, *, k: int = 3, seed: int = 0) -> Estimate:
    r"""Return the mutual information in nats of a discrete label L and a variable Y that may have atoms.

    .. math:: I(L;Y) = I(L;B) + P(B{=}c)\,I(L;Y|B{=}c)

    with B the atom that y sits on (a value that occurs more than k times and in more than
    one sample of a hundred) or c where it is continuous: the first term
    from the table with Miller and Madow's correction, the second by Ross's estimator
    :math:`\psi(N) - \langle\psi(N_l)\rangle + \langle\psi(k_l)\rangle - \langle\psi(m)\rangle`, m the points of any
    class within the distance of the k-th neighbor in the own class (:math:`k_l = \min(k, N_l - 1)`), on normal scores
    and not clamped at zero.

    Args:
        labels: (N,), integers (or any values that repeat).
        y: (N,).
        k: the number of the neighbor whose distance is taken.
        seed: of the order of equal values that are no atoms.

    Returns:
        The information; its error is the standard deviation of the terms per sample over the root of N.
        ``converged`` is False where more than one sample in forty is alone in its cell of the table of labels and
        atoms, or more than one in a hundred is the only one of its label.

    Raises:
        ValueError: shapes that differ, values that are not finite, or k < 1.

    Source: Ross, "Mutual information between discrete and continuous data sets", PLoS ONE, 2014.
    """
    label, values = pair_of(labels, y)
    classes = np.unique(label, return_inverse=True)[1] + 1 + CONTINUOUS
    atoms = labels_of(values, frequent_values(values, k))
    return chain_terms(label, values, classes, atoms, k=k, seed=seed).estimate(len(values))
