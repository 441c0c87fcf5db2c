"""The chain that hands statistics from one batch Kalman norm to the next, through the modules between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.nn.batch_kalman_norm import BatchKalmanNorm
from normlens.nn.functional import Moments, batch_moments, per_channel, standardize

__all__ = ["KalmanSequential"]


class KalmanSequential(nn.Sequential):
    """Apply modules in order, and predict the prior of each :class:`BatchKalmanNorm` from the one before.

    In train mode ``draws`` inputs are drawn with the mean and variance that a layer hands on, channel by channel,
    ``z = mean + sqrt(var) noise``, and go through the modules up to the next layer, with their weights of the moment;
    the moments over batch and space of what comes out are that layer's prior, and gradients flow through it. The first
    layer takes its own prior. In eval mode, and after the last layer, this is ``torch.nn.Sequential``.

    The noise comes from ``seed``, is the same at every call, and has exactly mean 0 and variance 1 per channel: so what
    acts on each channel by itself and is affine passes moments on exactly, and the whole is a function of its input.
    Dependence between channels and along space is not part of the prior.

    Shapes: those of the modules; the layers see ``(N, C, *spatial)``. Cost: ``draws`` more samples in the modules
    between layers. These must have no buffers, since they run twice; one that draws, as dropout, draws twice. Only
    direct children are chained: a chain within a chain begins anew.

    Source: Wang et al., NeurIPS 2018, arXiv:1802.03133; this transition is that of the published code, with one draw
    per batch there and fresh noise each time. The paper has a learned matrix instead, which the code does not.

    Args:
        *modules: the modules in order.
        draws: how many inputs to draw, at least 2.
        seed: of the noise.

    Raises:
        ValueError: too few draws, or a module with buffers between two layers.
    """

    def __init__(self, *modules: nn.Module, draws: int = 16, seed: int = 0) -> None:
        super().__init__(*modules)
        self.draws, self.seed = draws, seed
        if draws < 2:
            raise ValueError(f"KalmanSequential needs draws of at least 2 to take a variance; got {draws}; try 16")
        for name, module in self._between():
            if next(module.buffers(), None) is not None:
                raise ValueError(
                    "KalmanSequential needs modules without buffers between its layers, since they run twice; got "
                    f"{type(module).__name__} at {name}; move it before the first or after the last BatchKalmanNorm"
                )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the modules; in train mode each :class:`BatchKalmanNorm` after the first has its predicted prior."""
        cloud, left = None, sum(isinstance(module, BatchKalmanNorm) for module in self)
        for module in self:
            if not isinstance(module, BatchKalmanNorm):
                x, cloud = module(x), None if cloud is None else module(cloud)
                continue
            x, handed_on = module.step(x, None if cloud is None else _pooled(cloud))
            left -= 1
            cloud = self._draw(handed_on, x) if left and module.on_batch else None
        return x

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"draws={self.draws}, seed={self.seed}"

    def _draw(self, state: Moments, x: Tensor) -> Tensor:
        """Draw ``(draws, C, *spatial)`` of the dtype of ``x`` with the moments of ``state``."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((self.draws, *x.shape[1:]), generator=generator, dtype=torch.float64)
        noise = standardize(noise, *batch_moments(noise)).to(x.device, state.mean.dtype)
        std = state.var.clamp_min(torch.finfo(state.var.dtype).tiny).sqrt()  # its slope at 0 is infinite
        return (per_channel(state.mean, x) + per_channel(std, x) * noise).to(x.dtype)

    def _between(self) -> list[tuple[str, nn.Module]]:
        """List the modules between the first layer and the last, layers left out."""
        named = list(self.named_children())
        layers = [place for place, (_, module) in enumerate(named) if isinstance(module, BatchKalmanNorm)]
        return [named[place] for place in range(layers[0], layers[-1]) if place not in layers] if layers else []


def _pooled(cloud: Tensor) -> Moments:
    return Moments(*(moment.flatten() for moment in batch_moments(cloud)))
