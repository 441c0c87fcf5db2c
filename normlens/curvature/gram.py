"""The exact nonzero spectrum of a Gauss-Newton matrix, from the Gram matrix of the Jacobian's rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from normlens.batch import batch_size, split_batch
from normlens.risk import EmpiricalRisk
from normlens.typing import Batch

__all__ = ["GramSpectrum", "gauss_newton_spectrum", "output_hessian"]

_MEMORY = 2**29
_CHUNK = 64  # rows of the Jacobian in one backward pass


@dataclass(frozen=True)
class GramSpectrum:
    """The spectrum of a Gauss-Newton matrix.

    Attributes:
        values: (N C,) the eigenvalues of the Gram matrix, descending, float64. They are those of the n x n matrix up
            to zeros: it has n - N C further zeros, or N C - n fewer.
        samples: N.
        outputs: C, the outputs per sample.
        parameters: n.
        mode: how the model stood: "train", "eval" or "mixed".
        floor: what rounding leaves of a zero eigenvalue; values below it are noise.
    """

    values: Tensor
    samples: int
    outputs: int
    parameters: int
    mode: str
    floor: float

    @property
    def rank(self) -> int:
        """The number of eigenvalues above the floor."""
        return int((self.values > self.floor).sum())

    def condition(self, tolerance: float = 1e-12) -> float:
        r"""Return lambda_max over the smallest eigenvalue above ``tolerance`` lambda_max; nan where all are zero.

        Raises:
            ValueError: the tolerance is not in [0, 1), or lies below the floor: it would count rounding as curvature.
        """
        top = float(self.values.max()) if len(self.values) else 0.0
        if not 0 <= tolerance < 1 or tolerance * top < self.floor:
            least = self.floor / top if top > 0 else 0.0
            raise ValueError(
                f"tolerance must lie between the rounding floor {least:.1e} and 1; got {tolerance}; "
                "evaluate the model in float64 for a lower floor"
            )
        return top / float(self.values[self.values > tolerance * top].min()) if top > 0 else float("nan")


@dataclass(frozen=True)
class _Block:
    """A batch and the cotangents (rows, *outputs) whose vector-Jacobian products are rows of S^{1/2} J."""

    batch: Batch
    samples: int
    outputs: int
    cotangents: Tensor


def gauss_newton_spectrum(risk: EmpiricalRisk, *, memory: int | None = None, progress: bool = False) -> GramSpectrum:
    r"""Return every eigenvalue of the generalized Gauss-Newton matrix of a risk, without an n x n matrix.

    .. math:: G = J^\top S J, \qquad \lambda_{\neq 0}(G) = \lambda_{\neq 0}(S^{1/2} J J^\top S^{1/2}),
              \qquad J J^\top = \sum_l J_l J_l^\top

    J is the (N C, n) Jacobian of all outputs of a batch, so the coupling of samples by batch norm in training mode is
    in it; S is the Hessian of the mean loss by the outputs, a C x C block per sample (cross-entropy:
    :math:`(\operatorname{diag} p - pp^\top)/N`, where G is the Fisher matrix). The rows of several batches stand below
    one another, weighted by :math:`n_b/n`. Each row is one backward pass in the network's dtype; products of rows
    are summed in float64, so that eigenvalues keep a floor near the square of the network's precision.

    Args:
        risk: the model on its data; outputs are one tensor ``(N, ...)``.
        memory: bytes for the rows that are held at once (default 512 MiB); when a tensor's rows do not fit,
            they are formed again for each pair of panels. The Gram matrix itself, 8 (N C)^2 bytes, comes on top.
        progress: show a bar.

    Raises:
        ValueError: the loss couples the samples of a batch, is not convex in the outputs, or the outputs are no tensor.

    Source: Schraudolph, Neural Computation 14(7), 2002, for G; the Gram form is linear algebra.
    """
    batches = list(risk.batches())
    total = sum(map(batch_size, batches))
    if not total:
        raise ValueError("the data must hold at least one sample; got none (an exhausted iterator? pass a list)")
    blocks = [_block(risk, batch, batch_size(batch) / total) for batch in batches]
    theta = risk.parameters
    gram = _gram(risk, blocks, _MEMORY if memory is None else memory, progress)
    wanted = sum(block.samples * block.outputs for block in blocks)
    values = torch.zeros(wanted, dtype=torch.float64)
    values[: len(gram)] = torch.linalg.eigvalsh(gram).flip(0).cpu()
    return GramSpectrum(
        values=values.sort(descending=True).values,
        samples=sum(block.samples for block in blocks),
        outputs=blocks[0].outputs,
        parameters=sum(tensor.numel() for tensor in theta.values()),
        mode=risk.mode,
        floor=_floor(float(values.max()), wanted, blocks[0].cotangents.dtype),
    )


def output_hessian(risk: EmpiricalRisk, outputs: Tensor, targets: object) -> Tensor:
    r"""Return the Hessian of the mean loss of a batch by its outputs, (N, C, C) in float64: a block per sample.

    Args:
        risk: whose loss.
        outputs: ``(N, ...)``.
        targets: of the batch.

    Raises:
        ValueError: the outputs are not finite, a sample's loss depends on another sample's outputs, or a block is
            not positive semidefinite.
    """
    if not bool(outputs.isfinite().all()):
        raise ValueError(
            "the outputs must be finite; some are NaN or Inf: there is no curvature where training diverged"
        )
    z = outputs.detach().double().requires_grad_()
    goal = targets.double() if isinstance(targets, Tensor) and targets.is_floating_point() else targets
    with torch.enable_grad(), risk._undisturbed():
        (slope,) = torch.autograd.grad(risk.output_loss(z, (None, goal)), z, create_graph=True)
    ones = torch.ones(len(z), dtype=z.dtype, device=z.device)
    hessian = _columns(slope, z, ones)
    # With other weights the sum over samples changes wherever a block off the diagonal is not zero.
    weights = torch.randn(len(z), dtype=z.dtype, generator=torch.Generator().manual_seed(0)).to(z.device)
    scale = float(hessian.abs().max())
    if float((_columns(slope, z, weights) - weights[:, None, None] * hessian).abs().max()) > 1e-8 * scale:
        raise ValueError(
            "the loss of a sample must depend on its own outputs alone; here the Hessian of the loss by the outputs is "
            "not block diagonal (a contrastive loss, or statistics taken over the batch?): use the operator "
            "gauss_newton(risk) with Lanczos instead"
        )
    if float(torch.linalg.eigvalsh(hessian).min()) < -1e-8 * scale:
        raise ValueError(
            "the loss must be convex in the outputs; its Hessian has a negative eigenvalue: use hessian(risk)"
        )
    return hessian


def _columns(slope: Tensor, z: Tensor, weights: Tensor) -> Tensor:
    """Return sum_j H_ij w_j for every pair of outputs, (N, C, C)."""
    size = z[0].numel()
    if not slope.requires_grad:  # linear in the outputs
        return z.new_zeros(len(z), size, size)
    found = []
    for c in range(size):
        direction = torch.zeros_like(z).flatten(1) if z.ndim > 1 else torch.zeros_like(z)[:, None]
        direction[:, c] = weights
        (column,) = torch.autograd.grad(slope, z, direction.view_as(z), retain_graph=True, materialize_grads=True)
        found.append(column.reshape(len(z), size))
    columns = torch.stack(found, 2)
    return (columns + columns.mT) / 2


def _block(risk: EmpiricalRisk, batch: Batch, weight: float) -> _Block:
    with torch.no_grad():
        outputs = risk.batch_outputs({}, batch)
    if not isinstance(outputs, Tensor) or outputs.ndim == 0:
        raise ValueError(
            f"the model must return one tensor (N, ...); got {type(outputs).__name__}: pick it in `forward`"
        )
    hessian = output_hessian(risk, outputs, split_batch(batch)[1])
    n, size = hessian.shape[:2]
    values, vectors = torch.linalg.eigh(hessian)
    keep = values > size * torch.finfo(values.dtype).eps * values.max().clamp_min(torch.finfo(values.dtype).tiny)
    sample, column = keep.nonzero(as_tuple=True)
    cotangents = outputs.new_zeros(len(sample), n, size)
    roots = vectors.mT[sample, column] * (weight * values[sample, column]).sqrt()[:, None]
    cotangents[torch.arange(len(sample), device=outputs.device), sample] = roots.to(outputs.dtype)
    return _Block(batch, n, size, cotangents.view(len(sample), *outputs.shape))


def _floor(top: float, rows: int, dtype: torch.dtype) -> float:
    """Rounding moves singular values of the rows by about eps sigma_max, so zero eigenvalues to its square."""
    return top * max(rows * torch.finfo(torch.float64).eps, (8 * torch.finfo(dtype).eps) ** 2)


def _gram(risk: EmpiricalRisk, blocks: list[_Block], memory: int, progress: bool) -> Tensor:
    """Sum the products of rows over groups of parameters and pairs of panels; only the lower triangle is formed."""
    theta, rows = risk.parameters, sum(len(block.cotangents) for block in blocks)
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=blocks[0].cotangents.device)
    groups = _groups(theta, rows, memory)
    with tqdm(total=len(groups), desc="Gram matrix", disable=not progress, leave=False) as bar:
        for group in groups:
            width = sum(theta[name].numel() * theta[name].element_size() for name in group)
            whole = rows * width <= memory
            panel = max(1, rows if whole else memory // (2 * width))
            starts = [*range(0, rows, panel), rows]
            for low, high in pairwise(starts):
                left = _rows(risk, blocks, group, low, high)
                _add_product(gram, left, left, low, low)
                for first, last in pairwise([start for start in starts if start <= low]):
                    _add_product(gram, left, _rows(risk, blocks, group, first, last), low, first)
            bar.update()
    return gram.tril() + gram.tril(-1).T


def _groups(theta: dict[str, Tensor], rows: int, memory: int) -> list[list[str]]:
    """Pack tensors in order while their rows fit in ``memory``; a tensor that does not fit alone stands alone."""
    groups: list[list[str]] = []
    used = 0
    for name, tensor in theta.items():
        size = rows * tensor.numel() * tensor.element_size()
        if not groups or used + size > memory:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _add_product(gram: Tensor, left: Tensor, right: Tensor, row: int, column: int) -> None:
    """Add ``left right'`` in float64, in strips of columns so that no whole copy in float64 is held."""
    height = -(-len(left) // 8)
    for part in range(0, left.shape[1], 2048):
        a = left[:, part : part + 2048].double()
        b = a if left is right else right[:, part : part + 2048].double()
        for low in range(0, len(left), height):
            strip = a[low : low + height]
            used = b[: low + len(strip)] if left is right else b  # the rest is above the diagonal
            gram[row + low : row + low + len(strip), column : column + len(used)].addmm_(strip, used.T)


def _rows(risk: EmpiricalRisk, blocks: list[_Block], group: list[str], low: int, high: int) -> Tensor:
    """Return rows ``low`` to ``high`` of S^{1/2} J, by the parameters of ``group``: (high - low, n_group)."""
    theta = risk.parameters
    rows = next(iter(theta.values())).new_zeros(high - low, sum(theta[name].numel() for name in group))
    start = 0
    for block in blocks:
        first, last = max(low - start, 0), min(high - start, len(block.cotangents))
        if first < last:
            _fill(risk, block, group, first, rows[start + first - low : start + last - low])
        start += len(block.cotangents)
    return rows


def _fill(risk: EmpiricalRisk, block: _Block, group: list[str], first: int, rows: Tensor) -> None:
    theta = {name: risk.parameters[name].clone().requires_grad_() for name in group}

    def differentiate(outputs: Tensor) -> None:
        if not outputs.requires_grad:  # it uses none of them
            return
        for low in range(0, len(rows), _CHUNK):
            into = rows[low : low + _CHUNK]
            cotangents = block.cotangents[first + low : first + low + len(into)]
            offset = 0
            for tensor, gradient in zip(theta.values(), _products(outputs, theta, cotangents), strict=True):
                if gradient is not None:
                    into[:, offset : offset + tensor.numel()] = gradient.reshape(len(into), -1)
                offset += tensor.numel()

    # The backward passes are run in there, too: a checkpointed block computes its forward pass again.
    with torch.enable_grad(), risk._undisturbed():
        risk._call_with(theta, block.batch, differentiate)


def _products(outputs: Tensor, theta: dict[str, Tensor], cotangents: Tensor) -> list[Tensor | None]:
    """Return the vector-Jacobian products of a chunk of cotangents by every tensor, (k, *tensor.shape)."""
    wanted = list(theta.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            return list(
                torch.autograd.grad(
                    outputs, wanted, cotangents, retain_graph=True, is_grads_batched=True, allow_unused=True
                )
            )
        except RuntimeError:  # an operation without a batching rule
            pass
    loop = [
        torch.autograd.grad(outputs, wanted, cotangent, retain_graph=True, allow_unused=True)
        for cotangent in cotangents
    ]
    return [None if column[0] is None else torch.stack(column) for column in zip(*loop, strict=True)]
