"""hessian(risk): the matrix of second derivatives of a loss, matrix-free."""

from __future__ import annotations

from typing import get_args

from normlens.curvature.hessian_operator import HessianOperator
from normlens.curvature.product import HessianProduct
from normlens.curvature.product_choice import Method, choose_product
from normlens.risk import EmpiricalRisk

__all__ = ["hessian"]


def hessian(
    risk: EmpiricalRisk,
    *,
    product: type[HessianProduct] | None = None,
    method: Method = "auto",
    matvecs: int = 100,
    memory: int | None = None,
    check: bool = True,
) -> HessianOperator:
    r"""Return the Hessian of ``risk`` over its selected parameters, as an operator.

    .. math:: H v = \sum_b \tfrac{n_b}{n} \nabla^2 \ell_b(\theta)\, v

    Right through every normalization layer in train and eval mode, with respect to the batch statistics too. Running
    statistics, dropout masks and spectral-norm vectors stay as they are.

    Products are formed on kept graphs if they fit ``memory``, else by ``jvp(grad)``, else on graphs built anew. Where
    an operation has no second derivative, by ``jvp(grad)`` if that works and by differences of gradients if not; the
    operator's ``error`` then is what these are known to. With ``method="fast"`` the gradient is linearized, and
    compiled, if ``matvecs`` products pay for it. ``operator.product`` and ``operator.reason`` tell what was chosen.

    Args:
        risk: model, loss, data and mode.
        product: how products are formed; None to choose.
        method: "auto", or "fast" to prepare for many products.
        matvecs: how many products are expected, for "fast".
        memory: bytes for kept graphs; None for a quarter of what is free.
        check: compare with differences of gradients once, and test the symmetry.

    Raises:
        ValueError: no trainable parameters, no data, or a loss that is not scalar, not finite or not a function of
            the parameters; an unknown method, or a method together with a product.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if product is not None:
        if method == "fast":
            raise ValueError(f"hessian needs product= or method='fast'; got both ({product.__name__}): leave one out")
        return HessianOperator(risk, product=product, check=check)
    choice = choose_product(risk, method, matvecs, memory)
    return HessianOperator(risk, product=choice.product, check=check, reason=choice.reason)
