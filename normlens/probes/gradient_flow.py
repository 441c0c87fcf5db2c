"""GradientFlow: by which factor does the gradient grow from layer to layer on its way to the input?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from normlens.nn.vocabulary import concept
from normlens.probes.layer_passes import LayerPass, layer_passes
from normlens.probes.module_chain import Link, linked_calls
from normlens.probes.module_kinds import is_normalization, is_weight_layer
from normlens.probes.one_batch import at_the_mean, first_batch, training
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["GradientFlow"]

RELU_GROWTH = math.pi / (math.pi - 1)
r""":math:`E\varphi'^2 / (E\varphi^2 - (E\varphi)^2) = \tfrac12 / (\tfrac12 - \tfrac1{2\pi})`: a rectified Gaussian."""


@dataclass(frozen=True)
class GradientFlow:
    r"""Size of the loss's gradient by the activations, layer by layer, and its growth towards the input.

    ``energy`` of a layer is :math:`E\|\partial\ell/\partial h\|^2` over the samples, h what enters a linear or
    convolution layer (left out: one before which no parameter stands, and a tensor that another layer has read). With
    :math:`d_\ell = \ln E_\ell - \ln E_{\ell+1}` over m layers in the order of their calls

    .. math:: \mathrm{growth} = \exp\Bigl(\tfrac{1}{m-1}\sum_\ell d_\ell\Bigr),

    the factor per layer towards the input; its error is that of the mean of the d. The first and the last layer are
    left out, the ends being unlike what is between them; where fewer than three remain, there is no growth. ``fitted``
    is m.

    ``chain`` is 1 where each module reads what the one before it returned: no skip connection, and no function that is
    no module. There, before training, ``predicted`` is the growth of a wide network at random weights on a large batch:
    :math:`\pi/(\pi-1) = 1.467` for weight layer, batch norm, ReLU in a row, and 1 without the ReLU, whatever the
    variance of the weights. It is a limit of width and batch: at width 1000 a batch of 256 gives 1.47, one of 16 1.59;
    convolutions that pad with zeros fall short of it (1.41 on 8 x 8 places). Where the network is built in another way
    no prediction is known, and none is given; with skip connections this one does not hold.

    On one batch, of which the normalizations use the statistics whatever the mode. ``layers`` is 0 where no gradient
    reaches any such layer.

    Source: Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz, ICLR 2019, arXiv:1902.08129.

    Args:
        samples: how many of the probe data.
    """

    samples: int = 256

    def cost(self, step: Step) -> float:
        """A gradient."""
        return 1.2

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``."""
        if not any(parameter.is_floating_point() for parameter in step.risk.model.parameters()):
            yield Reading("layers", 0.0)
            return
        risk = first_batch(step.risk, self.samples)
        with at_the_mean(risk.model), training(risk.model, is_normalization), linked_calls(risk.model) as links:
            passes = _distinct(layer_passes(risk, is_weight_layer))
        n = risk.samples
        energies = []
        for call in passes:
            assert call.input_gradient is not None
            mean, error = _energy(call.input_gradient, n)
            energies.append(mean)
            yield Reading("energy", mean, error=error, layer=call.name, n=n)
        if not passes:
            yield Reading("layers", 0.0)
        if len(passes) >= 5:
            growth, error, fitted = growth_per_layer(energies)
            yield Reading("growth", growth, error=error, n=n)
            yield Reading("fitted", float(fitted))
            yield from _expected(links, len(passes), at_start=step.index == 0)


def growth_per_layer(energies: Sequence[float]) -> tuple[float, float, int]:
    """Return the growth towards the input, its standard error and how many layers it is of; see the class.

    Args:
        energies: of the layers from input to output, at least five.
    """
    inner = energies[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = -np.diff(np.log(np.array(inner, dtype=float)))
        growth = float(np.exp(steps.mean()))
        return growth, float(growth * steps.std(ddof=1) / math.sqrt(len(steps))), len(inner)


def _distinct(passes: list[LayerPass]) -> list[LayerPass]:
    """Keep the calls whose input has a gradient, and of those that read the same tensor the first."""
    by_input: dict[object, LayerPass] = {}
    for call in passes:
        if call.input_gradient is not None:
            by_input.setdefault((call.input.data_ptr(), call.input.shape, call.input.stride()), call)
    return list(by_input.values())


def _energy(gradient: Tensor, n: int) -> tuple[float, float]:
    """Return mean and standard error over the samples; the loss is their mean, so each has n times its share of it."""
    share = (n * gradient.double()).square()
    if len(gradient) != n or n < 2:  # samples are not along the first dimension, or there is one alone
        return float(share.sum() / n), math.nan
    each = share.flatten(1).sum(1)
    return float(each.mean()), float(each.std() / math.sqrt(n))


def _expected(links: list[Link], layers: int, *, at_start: bool) -> Iterator[Reading]:
    places = [i for i, link in enumerate(links) if is_weight_layer(link.module)]
    inside = links[places[0] + 1 : places[-1] + 1]
    chain = all(link.follows for link in inside)
    yield Reading("chain", float(chain))
    # One more weight layer than gradients: the first, which reads the data.
    if not (chain and at_start and len(places) == layers + 1):
        return
    between = [links[a + 1 : b] for a, b in pairwise(places[2:-1])]  # the fitted layers alone
    kinds = {_growth_of([link.module for link in block]) for block in between}
    if len(kinds) == 1 and (known := kinds.pop()) is not None:
        yield Reading("predicted", known)


def _growth_of(block: Sequence[nn.Module]) -> float | None:
    """Return the growth through a weight layer and what follows it; None where it is not known."""
    acting = [module for module in block if not isinstance(module, nn.Identity | nn.Flatten)]
    if not acting or len(acting) > 2 or not _is_plain_batch_norm(acting[0]):
        return None
    if len(acting) == 1:
        return 1.0
    return RELU_GROWTH if isinstance(acting[1], nn.ReLU) else None


def _is_plain_batch_norm(module: nn.Module) -> bool:
    """Say whether it is a batch norm that scales all channels alike and shifts none."""
    if not is_normalization(module) or concept(module) != "BatchNorm":
        return False
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    alike = weight is None or bool((weight == weight.flatten()[0]).all() & (weight.flatten()[0] > 0))
    return alike and (bias is None or not bool(torch.count_nonzero(bias)))
