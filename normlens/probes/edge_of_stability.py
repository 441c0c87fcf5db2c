"""EdgeOfStability: is the learning rate as large as the sharpness allows?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normlens.curvature.hessian import hessian
from normlens.curvature.hessian_operator import HessianOperator
from normlens.curvature.lanczos import eigsh
from normlens.curvature.operator import LinearOperator, precondition
from normlens.probes.warm_start import vectors_reading, warm_start
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["EdgeOfStability"]


@dataclass(frozen=True)
class EdgeOfStability:
    r"""The sharpness against the largest one at which the optimizer's steps still shrink on a quadratic.

    ``sharpness`` is :math:`\lambda_{\max}` of the Hessian (error: its residual), ``threshold``

    * SGD: :math:`2/\eta`, Polyak momentum: :math:`(2+2\beta)/\eta`, Nesterov: :math:`(2+2\beta)/(\eta(1+2\beta))`,
    * Adam and AdamW: :math:`(2+2\beta_1)/((1-\beta_1)\eta)` for :math:`P^{-1/2}HP^{-1/2}`,
      :math:`P = \operatorname{diag}(\sqrt{\hat v} + \varepsilon)`,

    and ``ratio`` their quotient: 1 is the edge. Before Adam's first step only the threshold is known. Valid for
    full-batch training; with mini-batches it is a comparison. Each measurement starts from the eigenvector of the
    last one and a fresh random direction.
    Source: Cohen et al., ICLR 2021 (arXiv:2103.00065) and arXiv:2207.14484.

    Args:
        tol: residual relative to the sharpness.
        max_matvecs: products at most.
    """

    tol: float = 1e-3
    max_matvecs: int = 100

    def cost(self, step: Step) -> float:
        """About thirty products of three gradients each."""
        return 100.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: the lens has no optimizer, or one whose threshold is not known.
            RuntimeError: the sharpness has not converged within ``max_matvecs``.
        """
        if step.optimizer is None:
            raise ValueError("the edge of stability needs the optimizer: pass optimizer= to the lens")
        threshold = stability_threshold(step.optimizer)
        yield Reading("threshold", threshold)
        if not isinstance(step.optimizer, torch.optim.SGD) and not step.optimizer.state:
            return  # before its first step Adam has no preconditioner, and there is no sharpness to compare
        operator = hessian(step.risk, check=not step.previous.first)
        pairs = eigsh(
            _preconditioned(operator, step), 1, "LA", tol=self.tol, max_matvecs=self.max_matvecs,
            start=warm_start(step.previous, operator.shape[0]), nearby=True, generator=step.generator,
        )  # fmt: skip
        if not bool(pairs.converged[0]):
            raise RuntimeError(
                f"the sharpness must converge; it has not in {pairs.matvecs} products: raise max_matvecs"
            )
        sharpness, error = float(pairs.values[0]), float(pairs.residuals[0])
        n = step.risk.samples
        yield Reading("sharpness", sharpness, error=error, n=n)
        yield Reading("ratio", sharpness / threshold, error=error / threshold, n=n)
        yield Reading("matvecs", float(pairs.matvecs))
        yield vectors_reading(pairs.vectors)


def stability_threshold(optimizer: torch.optim.Optimizer) -> float:
    """Return the sharpness at which the optimizer's steps stop shrinking on a quadratic; see :class:`EdgeOfStability`.

    Raises:
        ValueError: it is neither SGD nor Adam(W), its learning rate is 0, its parameter groups differ in what
            matters, or a hook before its step may change the gradients.
    """
    if getattr(optimizer, "_optimizer_step_pre_hooks", None):  # BNP and the like precondition there
        raise ValueError(
            "the threshold is known for steps along the gradient; this optimizer has a hook before its step, which may "
            "change it: take the transform off, or leave this probe out"
        )
    thresholds = {_group_threshold(optimizer, group) for group in optimizer.param_groups}
    if len(thresholds) > 1:
        raise ValueError("the threshold is known for one learning rate and momentum; the parameter groups differ")
    return thresholds.pop()


def _group_threshold(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float:
    rate = float(group["lr"])
    if not rate > 0:
        raise ValueError(f"the threshold needs a learning rate above 0; got {rate:g} (a warm-up?): measure later")
    if isinstance(optimizer, torch.optim.SGD):
        beta = float(group["momentum"])
        if group["dampening"]:
            raise ValueError("the threshold of SGD is known without dampening")
        return (2 + 2 * beta) / (rate * (1 + 2 * beta if group["nesterov"] else 1))
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        beta = float(group["betas"][0])
        return (2 + 2 * beta) / ((1 - beta) * rate)
    raise ValueError(f"the threshold is known for SGD, Adam and AdamW; got {type(optimizer).__name__}")


def _preconditioned(operator: HessianOperator, step: Step) -> LinearOperator:
    """Return the Hessian itself for SGD, and between two roots of Adam's inverse preconditioner for Adam."""
    optimizer = step.optimizer
    if optimizer is None or isinstance(optimizer, torch.optim.SGD):
        return operator
    named: dict[str, Tensor] = dict(step.risk.model.named_parameters())
    roots = dict(_inverse_roots(optimizer, named, operator))
    return precondition(operator, operator.layout.flatten(roots))


def _inverse_roots(
    optimizer: torch.optim.Optimizer, named: dict[str, Tensor], operator: HessianOperator
) -> Iterator[tuple[str, Tensor]]:
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name in operator.layout.shapes:
        parameter = named[name]
        state = optimizer.state.get(parameter, {})
        if "exp_avg_sq" not in state:  # not the optimizer's, or without a gradient: it does not move
            yield name, torch.zeros_like(parameter)
            continue
        group = settings[id(parameter)]
        second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        corrected = second / (1 - group["betas"][1] ** float(state["step"]))
        yield name, (corrected.sqrt() + group["eps"]).rsqrt()
