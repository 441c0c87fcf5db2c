"""HessianOperator: the matrix of second derivatives, by one way of forming its products."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.curvature.layout import ParameterLayout
from normlens.curvature.operator import LinearOperator
from normlens.curvature.product import HessianProduct, check_risk, sized_batches
from normlens.curvature.self_check import SelfCheck, check_hessian
from normlens.risk import EmpiricalRisk

__all__ = ["HessianOperator"]


class HessianOperator(LinearOperator):
    r"""The Hessian :math:`\nabla^2 L(\theta)` of an empirical risk.

    Attributes:
        layout: where each parameter stands in a vector.
        mode: how the model stood: "train", "eval" or "mixed".
        check: what the operator found when it checked itself.
        product: the way its products are formed.
        reason: why that way.
    """

    def __init__(
        self, risk: EmpiricalRisk, *, product: type[HessianProduct], check: bool, reason: str = "asked for"
    ) -> None:
        self.layout = ParameterLayout(risk)
        super().__init__(self.layout.n, self.layout.dtype, self.layout.device)
        self.mode, self.product, self.reason = risk.mode, product, reason
        self._risk = risk
        batches, total = sized_batches(risk)
        check_risk(risk, batches, total)
        self._products = [(product(risk, self.layout, batch), size / total) for batch, size in batches]
        self.check = check_hessian(self, risk) if check else SelfCheck.skipped()

    @property
    def error(self) -> float:
        """The largest relative error of a product so far, beyond the rounding of the dtype; 0 but for differences."""
        return max((part.error for part, _ in self._products), default=0.0)

    def matvec(self, v: Tensor) -> Tensor:
        """Return H v, each batch weighted by its number of samples."""
        return self._risk.summed(torch.stack([weight * part(v) for part, weight in self._products]).sum(0))
