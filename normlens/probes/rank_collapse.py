"""RankCollapse: how many directions do the samples still spread over, layer by layer?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from normlens.probes.inner_inputs import behind_the_first
from normlens.probes.module_kinds import is_nonlinearity
from normlens.probes.statistic_noise import standard_error
from normlens.run.capture import Layers
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["RankCollapse"]

_CHUNK = 1 << 14  # numbers of a sample that are turned to float64 at a time
_ROUNDING = 8  # eps: of what a layer computes, a few roundings of its values


@dataclass(frozen=True)
class RankCollapse:
    r"""Rank and orthogonality of the samples' representations: do they all become the same vector with depth?

    Of what leaves a nonlinearity, :math:`H \in R^{d \times n}` has a column for each of n samples: its channels at all
    positions, d numbers (their mean over positions would look collapsed in the first convolution of any network). With
    :math:`M = HH^\top/n`, and uncentered as in the papers:

    * ``effective_rank`` :math:`(\mathrm{tr}\,M)^2 / \|M\|_F^2`, a lower bound on the rank, from 1 (all samples on one
      line) to min(n, d); ``effective_rank_share`` of min(n, d),
    * ``orthogonality_gap`` :math:`V(H) = \|H^\top H/\|H\|_F^2 - I_n/n\|_F = \sqrt{1/r - 1/n}` of the effective rank r:
      0 for orthogonal columns of one length, :math:`\sqrt{1-1/n}` where all are parallel; ``gap_share`` of that,
    * ``soft_rank`` :math:`\#\{i: \sigma_i(H)^2/d \ge \tau\}`, of H scaled to a mean square of 1, so that a direction
      counts if it holds :math:`\tau` of an average sample; ``soft_rank_share`` of min(n, d),
    * ``mean_share`` :math:`\|\bar h\|^2 / \mathrm{mean}_n\|h_n\|^2`, 1 where all samples are the same, and
      ``effective_rank_centered``, of what is left without the mean: rectified units have a large one, which alone makes
      the first two look collapsed.

    Errors are those of the draw of the samples (delta method; too large where d > n). All depends on n: compare runs
    at the same. Samples that are all the same have rank 0 about their mean, zeros also with it, and no gap. Where a
    model has no such layer, ``layers`` is 0.

    Source: Daneshmand, Kohler, Bach, Hofmann and Lucchi, NeurIPS 2020, arXiv:2003.01652 (soft rank; the scaling to a
    mean square of 1 is ours); Daneshmand, Joudaki and Bach, NeurIPS 2021, arXiv:2106.03970 (orthogonality gap).

    Args:
        samples: how many of the probe data, the first.
        tau: of the soft rank.
        layers: which modules, whose output is taken; None for every nonlinearity, or, in a model that calls these as
            functions, for every linear and convolution layer behind another one with parameters, whose input is taken.
    """

    samples: int = 128
    tau: float = 0.01
    layers: Layers = None

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"RankCollapse needs tau above 0; got {self.tau}; 0.01 is a hundredth of a sample")

    def cost(self, step: Step) -> float:
        """A forward pass, and the eigenvalues of a matrix of samples x samples for each layer."""
        return 1.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``layers`` names nothing.
        """
        chosen = {name: tensor[: self.samples].detach() for name, tensor in self._chosen(step)}
        if not chosen:
            yield Reading("layers", 0.0)
        for name, samples in chosen.items():
            yield from _readings(name, samples, self.tau)

    def _chosen(self, step: Step) -> Iterator[tuple[str, Tensor]]:
        kind = (lambda _, module: is_nonlinearity(module)) if self.layers is None else self.layers
        outputs = step.activations(kind)
        if self.layers is not None or outputs:
            yield from ((name, found.output_samples) for name, found in outputs.items())
            return
        yield from ((name, found.input_samples) for name, found in behind_the_first(step).items())


def _readings(layer: str, samples: Tensor, tau: float) -> Iterator[Reading]:
    n, d = len(samples), samples[0].numel()
    gram = _gram(samples)
    rounding = _ROUNDING * float(torch.finfo(samples.dtype).eps)
    rank, error = effective_rank(gram)
    about = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    centered, centered_error = effective_rank(about, smallest=n * rounding**2)
    soft = float((torch.linalg.eigvalsh(gram) >= tau).sum()) if bool(gram.isfinite().all()) else math.nan
    largest = math.sqrt(1 - 1 / n)
    gap = math.sqrt(max(1 / rank - 1 / n, 0.0)) if rank > 0 else math.nan  # nan is not above 0 either
    gap_error = error / (2 * rank**2 * gap) if gap else math.nan
    for name, value, spread in (
        ("effective_rank", rank, error),
        ("effective_rank_share", rank / min(n, d), error / min(n, d)),
        ("effective_rank_centered", centered, centered_error),
        ("orthogonality_gap", gap, gap_error),
        ("gap_share", gap / largest if largest else math.nan, gap_error / largest if largest else math.nan),
        ("soft_rank", soft, math.nan),
        ("soft_rank_share", soft / min(n, d), math.nan),
        ("mean_share", float(gram.mean() / gram.diagonal().mean()), math.nan),
    ):
        yield Reading(name, value, error=spread, layer=layer, n=n)
    yield Reading("width", float(d), layer=layer)


def _gram(samples: Tensor) -> Tensor:
    """Return the products (n, n) of the samples in float64, scaled to a mean of 1 on the diagonal (of zeros: zeros)."""
    flat = samples.flatten(1)
    wide = torch.split(flat.cpu() if flat.device.type == "mps" else flat, _CHUNK, dim=1)
    gram = torch.stack([part.double() @ part.double().T for part in wide]).sum(0)
    size = gram.diagonal().mean()
    return gram if float(size) == 0 else gram / size


def effective_rank(gram: Tensor, *, smallest: float = 0.0) -> tuple[float, float]:
    r"""Return :math:`(\mathrm{tr}\,M)^2/\|M\|_F^2` and its standard error.

    A sample's influence is :math:`2r(\|h\|^2/\mathrm{tr}\,M - h^\top M h/\|M\|_F^2)`.

    Args:
        gram: the products of all pairs of samples, (n, n).
        smallest: the trace up to which there is nothing but rounding: the rank then is 0.
    """
    lengths, energies = gram.diagonal(), gram.square().sum(1)
    total, squares = lengths.sum(), energies.sum()
    if float(total) <= smallest:
        return 0.0, math.nan
    rank = float(total.square() / squares)
    return rank, standard_error(2 * rank * len(gram) * (lengths / total - energies / squares))
