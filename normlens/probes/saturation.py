"""Saturation: how many units sit where their nonlinearity is flat?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normlens.run.capture import Activation, Layers
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["Saturation"]

_STEEPEST = {nn.Tanh: 1.0, nn.Sigmoid: 0.25, nn.Softsign: 1.0, nn.Hardtanh: 1.0, nn.Hardsigmoid: 1 / 6, nn.ReLU6: 1.0}
"""The largest slope of each nonlinearity that is bounded on both sides."""


@dataclass(frozen=True)
class Saturation:
    r"""Share of the values, and of the units, at which a bounded nonlinearity :math:`\varphi` is all but flat.

    Of the tensor z that enters it: ``saturated`` :math:`P(|\varphi'(z)| < q\,\max|\varphi'|)` over samples, positions
    and channels, with its standard error (the sample is the independent unit), ``saturated_units``, the channels of
    which that holds for at least ``most`` of the values, ``channels``, and ``slope``
    :math:`E\,\varphi'(z)^2 / \max \varphi'^2`, the share of the gradient's energy that passes. With q = 0.05 a tanh is
    saturated beyond :math:`|z| = 2.18`, a sigmoid beyond 4.36; a rectified linear unit with an upper end counts on
    that side alone, the other being the business of :class:`normlens.probes.Elimination`. ``layers`` counts the
    nonlinearities, 0 where there is none that is bounded. All dimensionless.

    Source: Glorot and Bengio, AISTATS 2010, section 3 (saturated units stop what is before them from learning).

    Args:
        layers: which modules; None for every bounded nonlinearity.
        share: the q.
        most: from which share of its values on a unit counts as saturated.
    """

    layers: Layers = None
    share: float = 0.05
    most: float = 0.95

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.most <= 1):
            raise ValueError(
                f"Saturation needs 0 < share < 1 and 0 < most <= 1; got {self.share} and {self.most}; 0.05 and 0.95 "
                "are usual"
            )

    def cost(self, step: Step) -> float:
        """A forward pass, shared with other probes, and a slope for each value."""
        return 0.4

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: parameters are not finite, or ``layers`` names something without a bounded nonlinearity.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in step.risk.model.parameters()):
            raise ValueError("parameters must be finite for slopes to mean anything; some are not: measure before")
        chosen = step.activations(self._bounded if self.layers is None else self.layers)
        yield Reading("layers", float(len(chosen)))
        for name, activation in chosen.items():
            if type(activation.module) not in _STEEPEST:
                known = ", ".join(kind.__name__ for kind in _STEEPEST)
                raise ValueError(f"saturation is defined for {known}; {name} is {type(activation.module).__name__}")
            yield from self._of_layer(name, activation)

    @staticmethod
    def _bounded(_name: str, module: nn.Module) -> bool:
        return type(module) in _STEEPEST

    def _of_layer(self, layer: str, activation: Activation) -> Iterator[Reading]:
        slope = _relative_slope(activation)
        flat = torch.where(slope.isnan(), torch.nan, (slope < self.share).double())
        of_samples = flat.mean((1, 2))
        n = flat.numel() // flat.shape[-1]
        error = float(of_samples.std() / len(of_samples) ** 0.5)  # nan for a single sample
        yield Reading("saturated", float(of_samples.mean()), layer=layer, error=error, n=n)
        yield Reading("saturated_units", float((flat.mean((0, 1)) >= self.most).sum()), layer=layer, n=n)
        yield Reading("channels", float(flat.shape[-1]), layer=layer)
        yield Reading("slope", float(slope.square().mean()), layer=layer, n=n)


def _relative_slope(activation: Activation) -> Tensor:
    """Return ``|phi'(z)| / max |phi'|`` as (samples, positions, channels); the lower end of a ReLU6 counts as steep."""
    module, z = activation.module, activation.input_samples.double()
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        inside = (z < module.max_val) & ((z > module.min_val) | isinstance(module, nn.ReLU6))
        return torch.where(z.isnan(), z, inside.double())
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(type(module)()(leaf).sum(), leaf)
    return slope.abs() / _STEEPEST[type(module)]
