"""FisherVector: what does batch norm keep of each channel's Fisher vector, and is one Gaussian enough for it?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlens.information.fisher_vector import GaussianBlocks, RelativeError, fim_rel_err, gaussian
from normlens.information.gaussian_mixture import GaussianMixture
from normlens.information.mixture_search import double
from normlens.information.modality import Modality, modality
from normlens.nn.vocabulary import concept, is_normalization
from normlens.probes.module_kinds import is_nonlinearity
from normlens.run.capture import Activation, Layers
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["FisherVector"]

_RESIDUAL_VALUES = 1 << 18  # of a layer's input on which batch norm is run again


@dataclass(frozen=True)
class FisherVector:
    r"""Fisher vector of what enters each normalization layer: batch norm's own block, the other one, and the modes.

    Under the Gaussian of a channel a value has the Fisher vector :math:`G_\mu = (x-\mu)/\sigma`, :math:`G_\sigma =
    (G_\mu^2 - 1)/\sqrt 2`; batch norm hands on the first and nothing of the second. Over samples and positions:

    * ``bn_residual`` of a batch norm: :math:`\max|\mathrm{BN}(x) - G_\mu|`, the layer run again in float64 and train
      mode without its affine map: rounding errors alone, or it is not what it says.
    * ``sigma_energy`` :math:`E[G_\sigma^2] = (\mathrm{kurt}-1)/2`, for each channel, with ``skewness`` and
      ``kurtosis``; 1 for a Gaussian, 0 for two equal narrow modes, large for heavy tails. ``sigma_energy_mean`` over
      the channels has a standard error with the samples as independent units.
    * ``components``: how many Gaussians (at most so many) the Bayesian information criterion takes for a channel;
      ``bic_gain`` its evidence against one, in nats; ``modes`` of that mixture's density, between which it falls to
      half of the lower one; ``separation`` :math:`\min_{k\ne l}|\mu_k-\mu_l|/\sqrt{\sigma_k^2+\sigma_l^2}`, nan for
      one component.
    * ``fim_rel_err``: relative error of the diagonal Fisher information that mixture normalization and Fisher vectors
      of mixtures divide by; 0 for one component.

    Of each layer the shares of channels with more than one component (``mixed``) and more than one mode
    (``multimodal``), the median ``separation_median``, the mean ``fim_rel_err_mean`` over mixed channels, and how many
    channels are ``unknown``: constant or not finite. Skewed channels take two components and have one mode.

    The positions of a sample are correlated, so BIC counts the samples alone as independent values (cautious: it may
    miss a mode, and finds none in repetitions); the likelihood is that of all values. A value that many pixels share,
    as the background does, has no density: its component stands at the smallest variance there is, and the evidence for
    it is as large as that is small. ``repeated`` is the share of values that equal another one, 0 where all is well.
    Other positions and starts of EM may move single channels across the threshold of a mode. A model without
    normalizations is measured before its nonlinearities; without either ``layers`` is 0.

    Source: Kalayeh and Shah, arXiv:1806.02892; the measures are ours.

    Args:
        layers: which modules; their inputs are measured.
        most: components, at most.
        values: of a channel, at most: positions are left out, at random but always the same.
        bins: cells of the histogram that the mixtures are fitted on.
    """

    layers: Layers = None
    most: int = 3
    values: int = 4096
    bins: int = 128

    def cost(self, step: Step) -> float:
        """A forward pass, and EM for about two milliseconds a channel."""
        return 8.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``values`` is below 1, or ``layers`` names nothing.
        """
        if self.values < 1:
            raise ValueError(f"fisher_vector needs values of at least 1; got {self.values}; 4096 is usual")
        chosen = self._chosen(step)
        if not chosen:
            yield Reading("layers", 0.0)
        for name, activation in chosen.items():
            if _is_batch_norm(activation.module):
                yield Reading("bn_residual", _residual(activation), layer=name, n=len(activation.input))
            samples = _thinned(_samples(activation), self.values)
            blocks = gaussian(samples.flatten(0, 1))
            yield from _moments(name, blocks, samples.shape[:2])
            found = modality(
                samples.flatten(0, 1), most=self.most, independent=len(samples), bins=self.bins, steps=50,
                tolerance=1e-5, generator=step.generator,
            )  # fmt: skip
            yield from _modes(name, found, _fim_rel_errors(found.mixture, step.generator), len(samples))

    def _chosen(self, step: Step) -> dict[str, Activation]:
        if self.layers is not None:
            return dict(step.activations(self.layers))
        norms = step.activations(lambda _, module: is_normalization(module))
        return dict(norms or step.activations(lambda _, module: is_nonlinearity(module)))


def _is_batch_norm(module: nn.Module) -> bool:
    """One whose statistics are those of its own batch, not of other processes' too."""
    return concept(module) == "BatchNorm" and getattr(module, "process_group", None) is None


def _samples(activation: Activation) -> Tensor:
    """Return the input as (samples, positions, channels)."""
    if concept(activation.module) != "BatchNorm":
        return activation.input_samples
    moved = activation.input.movedim(1, -1)  # its channels, whatever the layer before makes of dimension 1
    return moved.reshape(len(moved), -1, moved.shape[-1])


def _thinned(samples: Tensor, values: int) -> Tensor:
    samples = samples[:: math.ceil(len(samples) / values)]
    positions = samples.shape[1]
    kept = min(positions, max(1, values // len(samples)))
    # A stride would stay in some columns of an image.
    order = torch.randperm(positions, generator=torch.Generator().manual_seed(0))[:kept].sort().values
    return double(samples[:, order.to(samples.device)])


def _residual(activation: Activation) -> float:
    """Return the largest difference of the layer's own output and the mean block; nan for one value a channel."""
    module, x = activation.module, activation.input
    x = double(x[: max(2, _RESIDUAL_VALUES // max(1, x[0].numel()))])
    flat = x.movedim(1, -1).reshape(-1, x.shape[1])
    if len(flat) < 2:
        return math.nan
    eps = getattr(module, "eps", 0.0)
    twin = copy.copy(module)  # shares the tensors, has a mode of its own
    twin.training = True
    state = {name: double(buffer).clone() for name, buffer in module.named_buffers()}
    state |= {name: torch.full_like(double(p), float(name == "weight")) for name, p in module.named_parameters()}
    with torch.no_grad():
        y = functional_call(twin, state, (x,))
    return float((y.movedim(1, -1).reshape_as(flat) - gaussian(flat, eps=eps).mu).abs().max())


def _moments(layer: str, blocks: GaussianBlocks, shape: torch.Size) -> Iterator[Reading]:
    z, n = blocks.mu, len(blocks.mu)
    energy, skewness, kurtosis = blocks.sigma.square().mean(0), z.pow(3).mean(0), z.pow(4).mean(0)
    for name, value in (("sigma_energy", energy), ("skewness", skewness), ("kurtosis", kurtosis)):
        yield Reading(name, value.cpu().numpy(), layer=layer, dims=("channel",), n=n)
    known = energy.isfinite()
    # What each value does to the kurtosis, through the mean and the variance that z is counted in too.
    influence = z.pow(4) - kurtosis - 4 * skewness * z - 2 * kurtosis * (z.square() - 1)
    by_sample = influence[:, known].view(*shape, -1).mean((1, 2)) / 2
    error = float(by_sample.std() / math.sqrt(shape[0])) if shape[0] > 1 else math.nan
    yield Reading("sigma_energy_mean", float(energy[known].mean()), layer=layer, error=error, n=n)
    again = z[:, known].sort(0).values.diff(dim=0) == 0
    yield Reading("repeated", float(again.sum(0).double().mean() / n), layer=layer, n=n)


def _modes(layer: str, found: Modality, wrong: RelativeError, n: int) -> Iterator[Reading]:
    separation = found.mixture.separation()
    known = ~found.components.isnan()
    mixed, multimodal = (count[known] > 1 for count in (found.components, found.modes))
    yield Reading("channels", float(len(known)), layer=layer)
    yield Reading("unknown", float((~known).sum()), layer=layer, n=n)
    yield Reading("mixed", float(mixed.double().mean()), layer=layer, n=n)
    yield Reading("multimodal", float(multimodal.double().mean()), layer=layer, n=n)
    yield Reading("separation_median", float(separation.nanmedian()), layer=layer, n=n)
    # The channels share their draws: the error of the mean is at most the mean of the errors.
    value, error = (float(part[known][mixed].mean()) for part in wrong)
    yield Reading("fim_rel_err_mean", value, layer=layer, error=error, n=n)
    for name, values, units in (
        ("components", found.components, None), ("modes", found.modes, None), ("bic_gain", found.gain, "nats"),
        ("separation", separation, None), ("fim_rel_err", wrong.value, None),
    ):  # fmt: skip
        yield Reading(name, values.cpu().numpy(), layer=layer, dims=("channel",), units=units, n=n)


def _fim_rel_errors(mixture: GaussianMixture, generator: torch.Generator) -> RelativeError:
    """Measure channels of more than one component; the diagonal is exact for one."""
    wrong = torch.where(mixture.weights.isnan().any(1), math.nan, 0.0).double()
    error = wrong.clone()
    several = (mixture.weights > 0).sum(1) > 1
    if several.any():
        parts = GaussianMixture(mixture.weights[several], mixture.means[several], mixture.variances[several])
        wrong[several], error[several] = fim_rel_err(parts, draws=64, repeats=4, generator=generator)
    return RelativeError(wrong, error)
