"""RepresentationAlignment: could the targets be reached from here by moving along the network's own gradients?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normlens.batch import split_batch
from normlens.probes.module_kinds import is_weight_layer
from normlens.probes.one_batch import at_the_mean, first_batch, outputs_of
from normlens.risk import EmpiricalRisk
from normlens.run.capture import capture
from normlens.run.probe import Step
from normlens.run.reading import Reading
from normlens.typing import Named, Schedule

__all__ = ["RepresentationAlignment", "alignment"]


@dataclass(frozen=True)
class RepresentationAlignment:
    r"""Data-architecture alignment: do the targets lie in the span of the outputs' gradients?

    With outputs :math:`f \in R^{nm}` of n samples and their Jacobian J by all trainable parameters:

    * ``rank`` of J and ``residual`` :math:`\|(I - U U^\top) y\| / \|y\|`, U its range and y the targets (class indices
      as one-hot rows). At 0 the condition holds: a stationary point of the squared loss would be a global minimum. At
      1 no parameter moves the outputs towards the targets, to first order. Where the loss is interpolated it is 0.
    * ``rank_last`` and ``residual_last``: the same for the last layer alone, where it is linear: :math:`J = [h(X), 1]
      \otimes I`, which is cheap and therefore taken on more samples.
    * ``structure_residual`` :math:`\|J_S\theta_S - f\| / \|f\|` for the parameters S of the last linear or convolution
      layer: 0 where the outputs are linear in them, which the theorems need (on-model structure).

    ``rows`` and ``rows_last`` are nm, which the rank would have to reach for every target to be aligned;
    ``smallest_singular`` is the smallest singular value of J. All of one batch, in float64 on a copy of the model; of a
    model that cannot be copied in its own precision, whose eps then is the tolerance of the rank. Left out: what needs
    J where that has more than ``largest`` numbers, and the readings of the last layer where the outputs are not those
    of a ``torch.nn.Linear``.

    A classifier's loss asks for no particular outputs; one-hot rows stand for them. Weight decay voids the theorems.

    Source: Kawaguchi, Zhang and Deng, Neural Computation 34(4), 2022, arXiv:2106.14836.

    Args:
        samples: how many of the probe data J has.
        samples_last: how many of them the last layer alone has.
        largest: numbers in J at most.
        when: a schedule within the lens's own, e.g. ``at(last_step)``; None to measure whenever the lens does.
    """

    samples: int = 32
    samples_last: int = 512
    largest: int = 10_000_000
    when: Schedule | None = None

    def cost(self, step: Step) -> float:
        """A backward pass of a few samples for every row of J, and its singular values."""
        return 100.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: the model returns anything but one tensor, the targets do not fit it, nothing is trainable, or J
                is too large and the last layer not linear.
        """
        if not step.risk.parameters:
            raise ValueError("representation alignment needs at least one trainable parameter; this model has none")
        with at_the_mean(step.risk.model):  # which a copy goes on to return
            whole = list(_whole(_double(first_batch(step.risk, self.samples)), self.largest))
            last = list(_last(_double(first_batch(step.risk, self.samples_last))))
        if not whole and not last:
            raise ValueError(
                f"representation alignment needs a Jacobian of at most {self.largest} numbers or a last layer that is "
                "torch.nn.Linear; this model has neither: raise largest, or lower samples"
            )
        return [*whole, *last]


class Alignment(NamedTuple):
    """Whether a vector lies in the range of a matrix.

    Attributes:
        rank: of the matrix.
        residual: ``|(I - U U^T) y| / |y|`` in [0, 1]; ``U`` spans the range.
        smallest: the smallest of the min(rows, columns) singular values.
    """

    rank: float
    residual: float
    smallest: float


def alignment(matrix: Tensor, y: Tensor, *, rtol: float | None = None) -> Alignment:
    """Take the rank of a matrix and the part of a vector outside of its range; nan where a number is not finite.

    Args:
        matrix: ``(rows, columns)``.
        y: ``(rows,)``, or ``(rows, k)`` for a matrix that acts on each column.
        rtol: singular values up to this share of the largest count as zero; None for the larger dimension times eps.
    """
    if not bool(matrix.isfinite().all() and y.isfinite().all()):
        return Alignment(math.nan, math.nan, math.nan)
    rtol = max(matrix.shape) * torch.finfo(matrix.dtype).eps if rtol is None else rtol
    wide = matrix.double()
    if wide.shape[1] > wide.shape[0]:  # J = R^T Q^T has the singular values and the range of R^T, which is small
        wide = torch.linalg.qr(wide.T, mode="r").R.T
    basis, sizes, _ = torch.linalg.svd(wide, full_matrices=False)
    span = basis[:, sizes > rtol * sizes[0]]
    target = y.double()
    outside = target - span @ (span.T @ target)
    outside = outside - span @ (span.T @ outside)  # again: the first projection leaves rounding of the size of y
    return Alignment(float(span.shape[1]), float(outside.norm() / target.norm()), float(sizes[-1]))


class _Head(NamedTuple):
    """The linear layer whose outputs are the network's, and what entered it."""

    name: str
    module: nn.Linear
    inputs: Tensor


def _double(risk: EmpiricalRisk) -> EmpiricalRisk:
    try:
        return risk.double()
    except RuntimeError:  # tensors on the modules that are no leaves (legacy spectral norm) cannot be copied
        return risk


def _targets(risk: EmpiricalRisk, outputs: Tensor) -> Tensor:
    _, targets = split_batch(next(iter(risk.batches())))
    if isinstance(targets, Tensor) and targets.shape == outputs.shape:
        return targets.to(outputs.dtype)
    classes = isinstance(targets, Tensor) and not targets.is_floating_point() and outputs.ndim == 2
    if not classes or targets.shape != outputs.shape[:1] or int(targets.max()) >= outputs.shape[1]:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"representation alignment needs targets like the outputs {tuple(outputs.shape)}, or class indices; got "
            f"{shape}: give the lens data with such targets"
        )
    known: Tensor = targets >= 0  # negative class indices are the convention for "ignore"
    rows: Tensor = torch.eye(outputs.shape[1]).to(outputs)[targets.clamp(min=0)]
    return rows * known[:, None]


def _head(risk: EmpiricalRisk, outputs: Tensor) -> _Head | None:
    """Return the last linear layer if the outputs are its own."""
    for name, last in reversed(capture(risk).items()):
        if type(last.module) is nn.Linear:
            own = last.output.shape == outputs.shape and torch.allclose(last.output, outputs, 0, 0, equal_nan=True)
            known = own and outputs.ndim == 2 and f"{name}.weight" in risk.parameters
            return _Head(name, last.module, last.input) if known else None
    return None


def _whole(risk: EmpiricalRisk, largest: int) -> Iterator[Reading]:
    outputs = outputs_of(risk, what="an alignment")
    y, parameters, n = _targets(risk, outputs).flatten(), risk.parameters, risk.samples
    if len(y) * sum(p.numel() for p in parameters.values()) > largest:
        return
    matrix = _jacobian(risk, parameters)
    found = alignment(matrix, y)
    yield Reading("rows", float(len(y)), n=n)
    yield Reading("rank", found.rank, n=n)
    yield Reading("residual", found.residual, n=n)
    yield Reading("smallest_singular", found.smallest, n=n)
    layers = [name for name, a in capture(risk).items() if is_weight_layer(a.module)]
    prefix = f"{layers[-1].partition('@')[0]}." if layers else ""
    kept = [p if name.startswith(prefix) else torch.zeros_like(p) for name, p in parameters.items()]
    made = matrix @ torch.cat([p.flatten() for p in kept])
    yield Reading("structure_residual", float((made - outputs.flatten()).norm() / outputs.norm()), n=n)


def _jacobian(risk: EmpiricalRisk, parameters: Named) -> Tensor:
    """Return the derivatives of all outputs by all parameters, a row for each output."""
    batch = next(iter(risk.batches()))
    theta = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    with torch.enable_grad():
        outputs: Tensor = risk.batch_outputs(theta, batch).flatten()
        if not outputs.requires_grad:  # it uses none of them
            return outputs.new_zeros(len(outputs), sum(p.numel() for p in theta.values()))
        rows = [_gradient(row, list(theta.values())) for row in outputs]
    return torch.stack(rows)


def _gradient(output: Tensor, theta: list[Tensor]) -> Tensor:
    parts = torch.autograd.grad(output, theta, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.detach().flatten() for part in parts])


def _last(risk: EmpiricalRisk) -> Iterator[Reading]:
    """Use that the Jacobian by the last layer is ``[h, 1] x I``: every output has the same matrix."""
    outputs = outputs_of(risk, what="an alignment")
    head = _head(risk, outputs)
    if head is None:
        return
    h, n = head.inputs, len(outputs)
    biased = head.module.bias is not None and f"{head.name}.bias" in risk.parameters
    found = alignment(torch.cat([h, torch.ones_like(h[:, :1])], 1) if biased else h, _targets(risk, outputs))
    yield Reading("rows_last", float(outputs.numel()), n=n)
    yield Reading("rank_last", found.rank * outputs.shape[1], n=n)
    yield Reading("residual_last", found.residual, n=n)
