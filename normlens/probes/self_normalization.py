"""SelfNormalization: does a gain common to all weights of a layer reach the outputs?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normlens.information.moments import Moments
from normlens.nn.vocabulary import is_normalization
from normlens.nn.weighted.base import Weighted
from normlens.probes.module_kinds import is_nonlinearity, is_weight_layer
from normlens.probes.one_batch import at_the_mean, first_batch, outputs_of, training
from normlens.run.capture import Activation
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["SelfNormalization"]

_DIRECTIONS = ("weight_v", "weight_orig", "parametrizations.weight.original", "parametrizations.weight.original1")


@dataclass(frozen=True)
class SelfNormalization:
    r"""Change of the outputs when all weights of a layer are scaled alike, and spread of the units' scales.

    * ``gain_sensitivity`` of each layer with weights: :math:`\|f((1+g) w_l) - f(w_l)\| / (g \|f(w_l)\|)` for weight and
      bias of the layer. 0: whatever multiplies the layer as a whole (a drifting memory cell array, a learning rate that
      lets weights grow) is normalized away, as by a normalization behind it, by weight normalization, or by stochastic
      synapses, whose :math:`P(z=1) = \frac12[1 + \mathrm{erf}(\beta v^\top z + b/(c\|w\|))]` knows no length of w.
      1: it goes through in full, as in the last linear layer. Of a reparametrized weight the parameter behind it is
      scaled, and the bias is not.
    * ``unit_spread`` of each nonlinearity's input: :math:`\mathrm{Std}_c[\sigma_c] / \mathrm{E}_c[\sigma_c]` of the
      standard deviations of its channels; 0 where all units are on one scale.

    Normalizations use the batch's statistics whatever the mode: running ones would not follow the gain. Stochastic
    layers return their means, and dropout draws the same in both passes. Dimensionless.

    Source: Detorakis et al., NeurIPS 2019, arXiv:1910.12316, for the self-normalization; the sensitivity is ours.

    Args:
        gain: the g.
        samples: how many of the probe data, taken as one batch.
    """

    gain: float = 0.1
    samples: int = 256

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise ValueError(
                f"SelfNormalization needs a gain above 0; got {self.gain}; 0.1 scales weights by ten percent"
            )

    def cost(self, step: Step) -> float:
        """A forward pass for each layer with weights, and two more."""
        return 0.34 * (2 + sum(map(_has_weights, step.risk.model.modules())))

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: the model returns anything but one tensor, or has no layers with weights and no nonlinearities.
        """
        found = [*self._sensitivities(step), *_spreads(step)]
        if not found:
            raise ValueError(
                "self-normalization needs layers with weights, or nonlinearities, that are modules; this model has "
                "neither: leave this probe out"
            )
        return found

    def _sensitivities(self, step: Step) -> Iterator[Reading]:
        risk = first_batch(step.risk, self.samples)
        with at_the_mean(risk.model), training(risk.model, is_normalization):
            plain = outputs_of(risk, what="a sensitivity").double()
            (batch,) = risk.batches()
            for layer, names in _scaled(risk.model):
                parameters = dict(risk.model.named_parameters())
                gained = {name: (1 + self.gain) * parameters[name].detach() for name in names}
                with torch.no_grad():
                    outputs: Tensor = risk.batch_outputs(gained, batch)
                change = (outputs.double() - plain).norm() / (self.gain * plain.norm())
                yield Reading("gain_sensitivity", float(change), layer=layer, n=len(plain))


def _has_weights(module: nn.Module) -> bool:
    return is_weight_layer(module) or isinstance(module, Weighted)


def _scaled(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield each layer with weights and the names of the parameters that a gain multiplies; a tied weight once."""
    known = {name for name, _ in model.named_parameters()}
    for layer, module in model.named_modules():
        if not _has_weights(module):
            continue
        prefix = f"{layer}." if layer else ""
        names = [prefix + leaf for leaf in _DIRECTIONS if prefix + leaf in known]
        if not names and f"{prefix}weight" in known:
            names = [name for name in (f"{prefix}weight", f"{prefix}bias") if name in known]
        if names:
            yield layer, names


def _spreads(step: Step) -> Iterator[Reading]:
    for layer, activation in step.activations(lambda _, module: is_nonlinearity(module)).items():
        yield _spread(layer, activation)


def _spread(layer: str, activation: Activation) -> Reading:
    moments = Moments.of(activation.input_samples)
    return Reading(
        "unit_spread", float(moments.std.std(correction=0) / moments.std.mean()), layer=layer, n=moments.count
    )
