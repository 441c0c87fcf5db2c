"""SelfCheck: an operator looks once whether it is the matrix that it claims to be."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normlens.curvature.central_difference import CentralDifference
from normlens.curvature.product import Compiled, Linearized

if TYPE_CHECKING:
    from normlens.curvature.hessian_operator import HessianOperator
    from normlens.risk import EmpiricalRisk

__all__ = ["SelfCheck", "check_hessian"]

_SAMPLES = 64
_TOLERATED = 0.01  # a wrong derivative is wrong by its own size; a ReLU mask that flips is not


@dataclass(frozen=True)
class SelfCheck:
    r"""What an operator found when it checked itself.

    Attributes:
        passed: whether both numbers are within their limits; None where nothing was checked.
        asymmetry: :math:`|u^\top A v - v^\top A u| / (\|u\| \|A v\|)` for random u, v.
        difference: the relative difference of A v from a central difference of gradients; nan where not meaningful.
            Where the products are differences themselves, what the operator knows of their error.
        message: what was found, in words.
    """

    passed: bool | None
    asymmetry: float = math.nan
    difference: float = math.nan
    message: str = ""

    @classmethod
    def skipped(cls) -> SelfCheck:
        """Return the outcome of a check that was not asked for."""
        return cls(None, message="not checked")


def check_hessian(operator: HessianOperator, risk: EmpiricalRisk) -> SelfCheck:
    """Test symmetry, and compare one product with a central difference of gradients; warn if either fails.

    The comparison is made in float64 on a copy of the model and the first samples of the first batch, where a
    difference of gradients knows the product to six digits or more; kinks of rectifiers are seen by a second step.
    """
    n = operator.shape[0]
    u, v = (_random(n, seed).to(operator.device, operator.dtype) for seed in (0, 1))
    av, au = operator @ v, operator @ u
    scale = float(av.double().norm() * u.double().norm())
    asymmetry = abs(float(u.double() @ av.double() - v.double() @ au.double())) / max(scale, 1e-300)
    differences = issubclass(operator.product, CentralDifference)
    difference = operator.error if differences else _difference(operator, risk)
    symmetric = asymmetry <= max(1e-9, 1e4 * torch.finfo(operator.dtype).eps, 3 * operator.error)
    agrees = differences or not difference > _TOLERATED
    if symmetric and differences:
        return SelfCheck(True, asymmetry, difference, f"symmetric; differences of gradients, known to {difference:.1e}")
    if symmetric and agrees:
        found = "and agrees with a difference of gradients" if difference == difference else "(no copy to difference)"
        return SelfCheck(True, asymmetry, difference, f"symmetric, {found}")
    what = "does not agree with a difference of gradients" if symmetric else "is not symmetric"
    message = (
        f"the Hessian {what} (asymmetry {asymmetry:.1e}, relative difference {difference:.1e}): an operation in "
        "the model or the loss has a wrong second derivative, such as a Function that saves a detached tensor or "
        "spectral_norm in train mode, or the model is not a deterministic function of its parameters"
    )
    warnings.warn(f"normlens: {message}", RuntimeWarning, stacklevel=4)
    return SelfCheck(False, asymmetry, difference, message)


def _difference(operator: HessianOperator, risk: EmpiricalRisk) -> float:
    """Return the relative difference that rounding and truncation cannot explain; nan where it cannot be known."""
    try:
        double = risk.double(_SAMPLES)
        traced = Linearized if operator.product is Compiled else operator.product  # compiling twice tells no more
        own = type(operator)(double, product=traced, check=False)
    except Exception:  # whatever a user's model raises when it is copied or run in float64: then we cannot know
        return math.nan
    layout, theta = own.layout, own.layout.flatten(double.parameters)
    direction = _random(own.shape[0], 2).to(own.device)
    direction /= direction.norm()
    product = own @ direction
    first, again = (layout.flatten(double.gradient()) for _ in range(2))
    if not torch.equal(first, again):
        return math.inf  # the model draws random numbers of its own
    estimates = []
    for step in (1e-5, 1e-6):
        plus, minus = (layout.flatten(double.gradient(layout.unflatten(theta + s * direction))) for s in (step, -step))
        estimates.append((plus - minus) / (2 * step))
    size = float(product.norm())
    spread = float((estimates[0] - estimates[1]).norm())
    distance = min(float((estimate - product).norm()) for estimate in estimates)
    return max(0.0, distance - spread) / size if size > 0 else 0.0


def _random(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
