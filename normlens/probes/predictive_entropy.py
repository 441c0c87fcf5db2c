"""PredictiveEntropy: how unsure is the network, and how much of that is its own noise?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normlens.nn.weighted.blank_out import Stochastic, sampling
from normlens.nn.weighted.predictive_entropy import entropy_of_samples
from normlens.probes.one_batch import first_batch, outputs_of, training
from normlens.risk import EmpiricalRisk
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["PredictiveEntropy"]


@dataclass(frozen=True)
class PredictiveEntropy:
    r"""Entropy of the averaged softmax outputs, and its part that comes from dropout and stochastic layers.

    With the probabilities :math:`p_t` of pass t over the classes (dimension 1 of the outputs) and
    :math:`\bar p = \frac1T\sum_t p_t`: ``entropy`` :math:`H[\bar p]` and ``mutual_information``
    :math:`H[\bar p] - \frac1T\sum_t H[p_t] \ge 0` between class and noise, in nats, both averaged over the samples with
    the standard error of that average; ``largest`` :math:`\ln C` is the entropy of a guess and ``draws`` the passes
    made. Where two passes agree to the bit nothing is random: there is one pass then, and no mutual information.

    Dropout draws in either mode (Monte-Carlo dropout) unless ``dropout`` is off; stochastic layers of
    :mod:`normlens.nn.weighted` draw as well. All draws follow from the step's generator. Of few passes both numbers are
    too small on average, by up to about :math:`(C-1)/(2T)` nats.

    Source: Dutta et al., Nature Communications 13, 2022, doi:10.1038/s41467-022-30305-8, for the entropy of rotated
    digits; the decomposition is the chain rule of entropy.

    Args:
        samples: how many of the probe data, taken as one batch.
        draws: passes over a network that is random.
        dropout: whether dropout draws where the network stands in eval mode.
    """

    samples: int = 256
    draws: int = 20
    dropout: bool = True

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(
                f"PredictiveEntropy needs draws of at least 2; got {self.draws}; a single pass cannot tell its own "
                "noise, 20 know it to (C - 1) / 40 nats"
            )

    def cost(self, step: Step) -> float:
        """A forward pass for each draw where the network is random, else two."""
        return 0.34 * (self.draws if any(map(_draws, step.risk.model.modules())) else 2)

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: the model returns anything but one tensor ``(N, C, ...)``.
        """
        risk = first_batch(step.risk, self.samples)
        with ExitStack() as undo:
            if self.dropout:
                undo.enter_context(training(risk.model, _drops))
            passes = torch.stack(self._passes(risk, step.generator))
        yield from _readings(passes)

    def _passes(self, risk: EmpiricalRisk, generator: torch.Generator) -> list[Tensor]:
        """Return the class probabilities of each pass, ``(N, ..., C)``; of one alone where nothing is random."""
        passes: list[Tensor] = []
        stochastic = any(isinstance(module, Stochastic) for module in risk.model.modules())
        for _ in range(self.draws):
            risk.seed = _seed(generator)
            source = torch.Generator().manual_seed(risk.seed)  # a risk puts back what a generator of a module drew
            with sampling(risk.model, source) if stochastic else nullcontext():
                outputs = outputs_of(risk, what="an entropy")
            passes.append(torch.softmax(outputs.double(), 1).movedim(1, -1))
            if len(passes) == 2 and torch.equal(*passes):
                return passes[:1]
        return passes


def _readings(passes: Tensor) -> Iterator[Reading]:
    if bool(passes.isfinite().all()):
        found = entropy_of_samples(passes)
        total, mutual = found.total, found.mutual_information.clamp(min=0)  # rounding
    else:
        total = mutual = torch.full(passes.shape[1:-1], torch.nan)
    yield _mean("entropy", total)
    yield _mean("mutual_information", mutual)
    yield Reading("largest", math.log(passes.shape[-1]), units="nats")
    yield Reading("draws", float(len(passes)))


def _mean(name: str, values: Tensor) -> Reading:
    """Average over positions, and over samples with the standard error of that."""
    of_samples = values.reshape(len(values), -1).mean(1)
    n = len(of_samples)
    error = float(of_samples.std()) / math.sqrt(n) if n > 1 else math.nan
    return Reading(name, float(of_samples.mean()), error=error, units="nats", n=n)


def _draws(module: nn.Module) -> bool:
    return isinstance(module, Stochastic) or _drops(module)


def _drops(module: nn.Module) -> bool:
    """Say whether a module is dropout, or has it within its own forward pass."""
    own = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0
    return own or isinstance(module, nn.modules.dropout._DropoutNd)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))
