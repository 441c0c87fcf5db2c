"""The algebra of quaternions on tensors: products, and the real matrix that multiplies by a quaternion."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hamilton_matrix", "hamilton_product"]


def hamilton_product(p: Tensor, q: Tensor, *, dim: int = -1) -> Tensor:
    """Multiply quaternions, ``p q``, which is not ``q p``: ``i j = k`` but ``j i = -k``.

    ``(r, i, j, k) = (p_r q_r - p_i q_i - p_j q_j - p_k q_k, p_r q_i + p_i q_r + p_j q_k - p_k q_j, p_r q_j - p_i q_k +
    p_j q_r + p_k q_i, p_r q_k + p_i q_j - p_j q_i + p_k q_r)``; ``|p q| = |p| |q|``.

    Shapes: ``dim`` holds four equal blocks r, i, j, k, as the channels of the layers do; the rest broadcasts.

    Args:
        p: the left factors.
        q: the right factors.
        dim: where the blocks are.

    Raises:
        ValueError: the size at ``dim`` is not the same multiple of four in both.
    """
    if p.shape[dim] != q.shape[dim] or p.shape[dim] % 4:
        raise ValueError(
            f"hamilton_product needs the same multiple of four at dim {dim}, blocks r, i, j, k; got {tuple(p.shape)} "
            f"and {tuple(q.shape)}; lay the four components out along that dimension"
        )
    a, b, c, d = p.chunk(4, dim)
    r, i, j, k = q.chunk(4, dim)
    parts = (
        a * r - b * i - c * j - d * k,
        a * i + b * r + c * k - d * j,
        a * j - b * k + c * r + d * i,
        a * k + b * j - c * i + d * r,
    )
    return torch.cat(parts, dim)


def hamilton_matrix(weight: Tensor) -> Tensor:
    """Write quaternion weights as the real ones that multiply ``[r; i; j; k]`` from the left.

    ``H(w) = [[r, -i, -j, -k], [i, r, -k, j], [j, k, r, -i], [k, -j, i, r]]``, so ``H(w) x = w x``, ``H(w)^T = H(conj
    w)`` and, for a single quaternion, ``H(w) H(w)^T = |w|^2 I``.

    Shapes: ``(4, out, in, *kernel)`` to ``(4 out, 4 in, *kernel)``.

    Source: Parcollet, Morchid and Linarès, ICASSP 2019, arXiv:1811.02656.

    Args:
        weight: its components r, i, j, k along the first dimension.
    """
    r, i, j, k = weight
    rows = ((r, -i, -j, -k), (i, r, -k, j), (j, k, r, -i), (k, -j, i, r))
    return torch.cat([torch.cat(row, 1) for row in rows])
