"""Spectral normalization: weights of largest singular value one, by PyTorch's own power iteration."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrizations

from normlens.random_state import preserved_random_state

__all__ = ["spectral_norm"]


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    *,
    dim: int | None = None,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    seed: int = 0,
) -> nn.Module:
    """Divide a weight by its largest singular value, and return the module.

    ``w = v / sigma`` with ``sigma = a' V b``, where ``V`` is ``v`` as a matrix of one row per filter, and the unit
    vectors ``a`` and ``b`` follow its first singular vectors by power iteration: ``b ~ V' a``, ``a ~ V b``. It is
    ``torch.nn.utils.parametrizations.spectral_norm``, whose start is drawn from ``seed`` here.

    Registering divides the weight; it is kept only where its largest singular value is 1.

    Shapes: those of the weight; the buffers ``_u`` and ``_v`` are ``(rows,)`` and ``(columns,)``.

    Valid for the first derivative once the iteration has converged. ``a`` and ``b`` are constants for autograd, so that
    second derivatives leave out how the singular vectors turn: a Hessian-vector product is not that of ``v / sigma_1``.
    In train mode every use of the weight takes ``n_power_iterations`` and moves the buffers; in eval mode none.

    Source: Miyato, Kataoka, Koyama and Yoshida, ICLR 2018, arXiv:1802.05957.

    Args:
        module: holds the weight.
        name: of the parameter.
        dim: the dimension that counts the filters; None for 1 in transposed convolutions and 0 elsewhere.
        n_power_iterations: at each use in train mode; registering takes 15.
        eps: below which a length is not divided by.
        seed: of the vectors that the iteration starts from; the global random state stays as it is.

    Raises:
        ValueError: there is no such parameter.
    """
    with preserved_random_state(seed):
        return parametrizations.spectral_norm(module, name, n_power_iterations, eps, dim)
