"""Mutual information of variables with atoms (dropout's zeros, ReLU's zeros) by the chain rule."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information.chain_rule import Rows, chain_terms
from normlens.information.mutual_information.samples import frequent_values, labels_of, pair_of, rounded

__all__ = ["hurdle"]

Atoms = tuple[float, ...]


def hurdle(
    x: Tensor,
    y: Tensor,
    *,
    atoms: tuple[Atoms, Atoms] | None = None,
    keep: tuple[Tensor, Tensor] | None = None,
    k: int = 3,
    seed: int = 0,
) -> Estimate:
    r"""Return the mutual information in nats of two variables that are partly continuous and partly atoms.

    With A the atom that x sits on, or c where it is continuous, and B the same of y,

    .. math:: I(X;Y) = I(A;B) + P(B{=}c)\,I(A;Y|B{=}c) + P(A{=}c)\,I(X;B|A{=}c) + P(A{=}B{=}c)\,I(X;Y|A{=}B{=}c)

    exactly. The first term comes from the table with Miller and Madow's correction, the next two from Ross's
    estimator, the last from the first one of Kraskov et al., both on normal scores and not clamped at zero. Without
    atoms only the last is left, for two discrete variables only the first.

    Where the gates of a dropout are known, and independent of each other and of x and y, ``keep`` gives
    :math:`P(\text{both kept})\,I(X;Y|\text{both kept})`: what the gated variables *and their gates* tell of each other.
    The gated variables alone tell as much where x and y have no atom at zero, and less where they have (ReLU before
    dropout). Gates that are shared by x and y break it.

    Args:
        x: (N,).
        y: (N,).
        atoms: the values of x, and those of y, that have positive probability; None for the values that occur more
            than k times and in more than one sample of a hundred (rarer ones, as rounding makes them, do no harm).
        keep: the gates of x and of y, boolean (N,) each; of a pair with a closed gate only the number counts.
        k: the number of the neighbor whose distance is taken.
        seed: of the order of equal values that are no atoms.

    Returns:
        The information; its error is the standard deviation of the terms per sample over the root of N,
        which may be a tenth too small.
        ``converged`` is False where more than one sample in forty is alone in its cell of the table of atoms, or more
        than one in a hundred is without neighbors.

    Raises:
        ValueError: shapes that differ, values that are not finite, gates that are not boolean or keep no more than k
            pairs, a value not named as an atom that occurs more than k times and in more than one sample of a
            hundred, or k < 1.

    Source: the chain rule; Ross, PLoS ONE, 2014; Kraskov, Stögbauer and Grassberger, 2004 (cond-mat/0305641).
    """
    everyone = pair_of(x, y)
    both = _kept(keep, len(x), k)
    left, right = (values[both] for values in everyone)
    if atoms is None:
        first, second = frequent_values(left, k), frequent_values(right, k)
    else:
        first, second = rounded(atoms[0], x), rounded(atoms[1], y)
    terms = chain_terms(left, right, labels_of(left, first), labels_of(right, second), k=k, seed=seed)
    return terms.estimate(len(x))


def _kept(keep: tuple[Tensor, Tensor] | None, n: int, k: int) -> Rows:
    """Return the rows in which both gates are open."""
    if keep is None:
        return np.ones(n, dtype=np.bool_)
    if any(gate.shape != (n,) or gate.dtype != torch.bool for gate in keep):
        got = " and ".join(f"{gate.dtype} of shape {tuple(gate.shape)}" for gate in keep)
        raise ValueError(f"keep needs two boolean tensors of shape ({n},); got {got}; pass mask != 0")
    both: Rows = (keep[0].cpu() & keep[1].cpu()).numpy()
    if both.sum() <= k:
        raise ValueError(f"the gates must keep more than k = {k} pairs; they keep {both.sum()}; take more samples")
    return both
