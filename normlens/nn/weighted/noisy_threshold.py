"""What threshold units with noisy synapses share: their parameters, their mean, and how they are sampled."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from normlens.nn.functional import per_channel, promote
from normlens.nn.weighted.base import draw_normal_
from normlens.nn.weighted.blank_out import Stochastic, check_probability, normal, uniform

__all__ = ["Estimator", "Noise", "NoisyThreshold", "Sample"]

Noise = Literal["bernoulli", "gaussian"]
Sample = Literal["synapse", "unit"]
Estimator = Literal["straight_through", "concrete"]


class NoisyThreshold(Stochastic):
    """Weights, gains ``magnitude`` and a bias of threshold units, and how their noise is drawn."""

    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator,
        has_bias: bool,
        p: float,
        noise: Noise,
        std: float,
        sample: Sample,
        estimator: Estimator,
        temperature: float,
        approx: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.has_bias, self.p, self.noise, self.std, self.sample = has_bias, p, noise, std, sample
        self.estimator, self.temperature, self.approx = estimator, temperature, approx
        self._check_settings()
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        one = torch.ones(shape[0], device=device, dtype=dtype)
        self.magnitude = nn.Parameter(one)
        self.register_parameter("bias", nn.Parameter(torch.zeros_like(one)) if has_bias else None)
        self.reset_parameters(generator)

    def _check_settings(self) -> None:
        name = type(self).__name__
        check_probability(name, self.p)
        for key, known in (("noise", Noise), ("sample", Sample), ("estimator", Estimator)):
            if getattr(self, key) not in get_args(known):
                choices = " or ".join(map(repr, get_args(known)))
                raise ValueError(f"{name} needs {key} to be {choices}; got {getattr(self, key)!r}; choose one of them")
        for key in ("std", "temperature"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{name} needs a positive {key}; got {getattr(self, key)}; use 1.0 or 0.5")

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights anew, ``N(0, 1 / fan_in)``; ``magnitude`` becomes 1 and ``bias`` 0."""
        draw_normal_(self.weight, std=1 / math.sqrt(self.weight[0].numel()), generator=generator)
        nn.init.ones_(self.magnitude)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def noise_std(self) -> float:
        """Standard deviation of ``xi``: ``sqrt(p (1 - p))``, or ``std`` of Gaussian noise."""
        return math.sqrt(self.p * (1 - self.p)) if self.noise == "bernoulli" else self.std

    @property
    def offset(self) -> Tensor:
        """``a = c magnitude - E[xi]`` with ``c = sqrt(2) noise_std``, ``(out,)``: it makes ``magnitude`` the gain."""
        return math.sqrt(2) * self.noise_std * self.magnitude - (self.p if self.noise == "bernoulli" else 1.0)

    def activation_probability(self, z: Tensor) -> Tensor:
        """Probability that a unit is +1: ``(1 + erf(phi)) / 2``, exact for Gaussian noise and inputs of -1 and 1."""
        return (torch.erfc(-self._phi(promote(z))) / 2).to(z.dtype)

    def _project(self, z: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _patches(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def _phi(self, z: Tensor) -> Tensor:
        """``(magnitude w . z + bias / c) / |w|``: the mean of ``u`` in units of ``sqrt(2)`` of its deviations."""
        weight = self.weight.to(z.dtype)
        lengths = weight.flatten(1).square().sum(1).sqrt()
        projected = promote(self._project(z, weight))
        drift = projected * per_channel(self.magnitude.to(z.dtype) / lengths, projected)
        if self.bias is None:
            return drift
        return drift + per_channel(self.bias.to(z.dtype) / (math.sqrt(2) * self.noise_std * lengths), projected)

    def _activate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        z = promote(x)
        phi = self._phi(z)
        source = self.source if generator is None else generator
        if source is None:
            return torch.erf(phi).to(x.dtype)
        if self.estimator == "concrete":
            return self._relaxed(phi, source).to(x.dtype)
        mean = torch.erf(phi)
        # the difference is 0 and carries the derivatives
        return (self._fire(z, phi.detach(), source) + (mean - mean.detach())).to(x.dtype)

    def _relaxed(self, phi: Tensor, source: torch.Generator) -> Tensor:
        """``2 BinConcrete - 1 = tanh((logit P + logistic noise) / (2 temperature))``."""
        drawn = uniform(phi.shape, source).double().clamp_min(2.0**-25)
        argument = math.sqrt(2) * phi
        log_odds = torch.special.log_ndtr(argument) - torch.special.log_ndtr(-argument)
        return torch.tanh((log_odds + torch.logit(drawn).to(phi)) / (2 * self.temperature))

    @torch.no_grad()
    def _fire(self, z: Tensor, phi: Tensor, source: torch.Generator) -> Tensor:
        """``sign(u)``, with ``u`` as its mean ``c |w| phi`` and what the noise adds to it; the sign of 0 is +1."""
        weight = self.weight.to(z.dtype)
        lengths = weight.flatten(1).square().sum(1).sqrt()
        with torch.autocast(z.device.type, enabled=False):  # signs of half-precision sums would be wrong near 0
            u = phi * per_channel(math.sqrt(2) * self.noise_std * lengths, phi) + self._fluctuation(z, weight, source)
        return torch.where(u >= 0, 1.0, -1.0).to(z.dtype)

    def _fluctuation(self, z: Tensor, weight: Tensor, source: torch.Generator) -> Tensor:
        """``sum_j (xi_ij - E[xi]) w_ij z_j``."""
        if self.sample == "unit":
            return self._project(self._centered(z.shape, source).to(z) * z, weight)
        if self.approx or self.noise == "gaussian":  # for Gaussian noise the sum is Gaussian: exact, and out of memory
            deviations = self.noise_std * self._project(z.square(), weight.square()).sqrt()
            return deviations * normal(deviations.shape, source).to(z)
        patches = self._patches(z).unsqueeze(-2)
        xi = self._centered((*patches.shape[:-2], len(weight), patches.shape[-1]), source).to(z)
        return (xi * (patches * weight.flatten(1))).sum(-1).movedim(-1, 1)

    def _centered(self, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        if self.noise == "bernoulli" and not self.approx:
            return (uniform(shape, source) < self.p).to(torch.float64) - self.p
        return self.noise_std * normal(shape, source)
