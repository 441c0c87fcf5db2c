"""Blank-out noise, and the block in which stochastic layers draw theirs from a generator of the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["BlankOut", "Stochastic", "check_probability", "normal", "sampling", "uniform"]


class Stochastic(nn.Module):
    """A layer that draws from ``source`` where there is one, and returns its mean where there is none."""

    source: torch.Generator | None = None


@contextmanager
def sampling(model: nn.Module, generator: torch.Generator) -> Iterator[nn.Module]:
    """Let every stochastic layer of a model draw from ``generator`` inside the block; outside they return their means.

    Two passes inside differ, train and eval mode alike. The state of the generator is the caller's to save. A
    lens and an ``EmpiricalRisk`` put it back after each of their passes; whatever else calls the model moves it.

    Args:
        model: anything that holds :class:`NSMLinear`, :class:`NSMConv` or :class:`BlankOut`.
        generator: the source of the noise, on any device.

    Yields:
        The same model.

    Raises:
        ValueError: no layer of the model is stochastic.
    """
    layers = [module for module in model.modules() if isinstance(module, Stochastic)]
    if not layers:
        raise ValueError(
            f"sampling needs a model with a stochastic layer; got {type(model).__name__} without one; "
            "build it of NSMLinear, NSMConv or BlankOut"
        )
    before = [layer.source for layer in layers]
    try:
        for layer in layers:
            layer.source = generator
        yield model
    finally:
        for layer, source in zip(layers, before, strict=True):
            layer.source = source


class BlankOut(Stochastic):
    """Transmit each number with probability ``p`` and blank it out otherwise, without the ``1 / p`` of dropout.

    ``y = xi x`` with ``xi ~ Bernoulli(p)``, each drawn anew, in train and eval mode; without a generator ``y = p x``.
    On activations the noise is common to all synapses of a unit; as a ``torch.nn.utils.parametrize`` parametrization of
    a weight it is one mask for the whole batch. Noise of its own for each synapse and sample is :class:`NSMLinear`'s.

    Shapes: any to the same; same unit.

    Source: Neftci, Pedroni, Joshi, Al-Shedivat and Cauwenberghs, Front. Neurosci. 10:241, 2016.

    Args:
        p: probability of transmission, between 0 and 1.

    Raises:
        ValueError: ``p`` is not between 0 and 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("BlankOut", p)
        self.p = p

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Blank out, from ``generator`` or else from that of :func:`sampling`; the mean without one."""
        source = self.source if generator is None else generator
        if source is None:
            return self.p * x
        return x * (uniform(x.shape, source).to(x.device) < self.p)

    def extra_repr(self) -> str:
        """Show ``p``."""
        return f"p={self.p}"


def uniform(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """Draw from [0, 1) in float32 on the generator's device, so that every dtype and device sees the same noise."""
    return torch.rand(shape, generator=source, device=source.device, dtype=torch.float32)


def normal(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """Draw standard normal numbers as :func:`uniform` draws."""
    return torch.randn(shape, generator=source, device=source.device, dtype=torch.float32)


def check_probability(name: str, p: float) -> None:
    """Refuse a probability of transmission that leaves nothing random.

    Args:
        name: of the layer, for the message.
        p: the probability.

    Raises:
        ValueError: ``p`` is not between 0 and 1.
    """
    if not 0 < p < 1:
        raise ValueError(f"{name} needs p between 0 and 1, both excluded; got {p}; use 0.5")
