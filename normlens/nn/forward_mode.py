"""Whether a tensor is being differentiated in forward mode, where some fast ways are wrong."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["has_tangent", "in_forward_mode"]


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether any of these carries a tangent at the innermost level of differentiation.

    So it is in ``jvp(f)``, ``grad(jvp(f))`` and ``jvp(jvp(f))``, where PyTorch's kernels and functions with a
    derivative of their own may lose the outer derivative without a word; in ``jvp(grad(f))`` and ``jvp(jacrev(f))``,
    where the innermost level is reverse mode, it need not be.
    """
    present = (tensor for tensor in tensors if tensor is not None)
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in present)  # type: ignore[no-untyped-call]


def in_forward_mode() -> bool:
    """Whether anything at all is being differentiated in forward mode, at whatever level.

    So it is also where :func:`has_tangent` sees nothing, in ``jvp(grad(f))`` and ``jvp(jacrev(f))``.
    """
    return forward_ad._current_level >= 0
