"""hessian(risk): the matrix of second derivatives of a loss, matrix-free."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from normlens.batch import batch_size
from normlens.curvature.layout import ParameterLayout
from normlens.curvature.operator import LinearOperator
from normlens.curvature.product import ForwardOverReverse, HessianProduct, RetainedGraph
from normlens.curvature.self_check import SelfCheck, check_hessian
from normlens.risk import EmpiricalRisk

__all__ = ["HessianOperator", "hessian"]


class HessianOperator(LinearOperator):
    r"""The Hessian :math:`\nabla^2 L(\theta)` of an empirical risk.

    Attributes:
        layout: where each parameter stands in a vector.
        mode: how the model stood: "train", "eval" or "mixed".
        check: what the operator found when it checked itself.
        product: the way its products are formed.
    """

    def __init__(self, risk: EmpiricalRisk, *, product: type[HessianProduct], check: bool) -> None:
        self.layout = ParameterLayout(risk)
        super().__init__(self.layout.n, self.layout.dtype, self.layout.device)
        self.mode, self.product = risk.mode, product
        self._risk = risk
        batches = [(batch, batch_size(batch)) for batch in risk.batches()]
        total = risk.count(sum(size for _, size in batches))
        if not total:
            raise ValueError("the data must hold at least one sample; got none (an exhausted iterator? pass a list)")
        if not bool(torch.isfinite(loss := risk.loss())):
            raise ValueError(f"the loss must be finite; it is {float(loss)}: there is no curvature where it diverged")
        self._parts = [(product(risk, self.layout, batch), size / total) for batch, size in batches]
        self.check = check_hessian(self, risk) if check else SelfCheck.skipped()

    def matvec(self, v: Tensor) -> Tensor:
        """Return H v, each batch weighted by its number of samples."""
        return self._risk.summed(torch.stack([weight * part(v) for part, weight in self._parts]).sum(0))


def hessian(
    risk: EmpiricalRisk,
    *,
    product: type[HessianProduct] | None = None,
    memory: int | None = None,
    check: bool = True,
) -> HessianOperator:
    r"""Return the Hessian of ``risk`` over its selected parameters, as an operator.

    .. math:: H v = \sum_b \tfrac{n_b}{n} \nabla^2 \ell_b(\theta)\, v

    Right through every normalization layer in train and eval mode, with respect to the batch statistics too. Running
    statistics, dropout masks and spectral-norm vectors stay as they are.

    Args:
        risk: model, loss, data and mode.
        product: how products are formed; None keeps the graphs if they fit ``memory``, else uses ``jvp(grad)``.
        memory: bytes for kept graphs; None for a quarter of what is free.
        check: compare with differences of gradients once, and test the symmetry.

    Raises:
        ValueError: no trainable parameters, no data, or a loss that is not scalar, not finite or not a function of
            the parameters.
    """
    if product is None:
        product = RetainedGraph if _graph_bytes(risk) <= (memory or free_memory(risk) // 4) else ForwardOverReverse
    return HessianOperator(risk, product=product, check=check)


def free_memory(risk: EmpiricalRisk) -> int:
    """Return the free bytes of the device that holds the parameters."""
    device = ParameterLayout(risk).device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def _graph_bytes(risk: EmpiricalRisk) -> int:
    """Estimate the memory of all kept graphs from what the first batch's forward and backward pass save."""
    seen: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    first, samples, total = None, 1, 0
    for batch in risk.batches():
        first, samples = (batch, batch_size(batch)) if first is None else (first, samples)
        total += batch_size(batch)
    if first is None:
        return 0
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        RetainedGraph(risk, ParameterLayout(risk), first)
    return round(sum(seen.values()) * total / max(1, samples))
