"""WeightDynamics: how fast do the weights turn, and does the loss depend on their length at all?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlens.curvature.hessian import hessian
from normlens.curvature.lanczos import eigsh
from normlens.nn.vocabulary import is_normalization
from normlens.probes.input_span import weight_span_decomposition
from normlens.probes.module_kinds import is_weight_layer
from normlens.probes.one_batch import at_the_mean, first_batch, training
from normlens.probes.weight_balance import weight_balance
from normlens.risk import EmpiricalRisk
from normlens.run.probe import Step
from normlens.run.reading import Reading
from normlens.typing import Named

__all__ = ["WeightDynamics"]

_WIDEST = 1024  # numbers that enter a unit, beyond which the inputs' span would cost seconds
_LEAVES = ("weight", "weight_v", "weight_orig", "parametrizations.weight.original", "parametrizations.weight.original1")


_INVARIANT = 1e-3  # the cosine of weight and gradient below which the weight's length has no say


@dataclass(frozen=True)
class WeightDynamics:
    r"""Length, turning and scale invariance of the weight of every linear and convolution layer.

    For each weight w that the optimizer steps, with learning rate :math:`\eta` and weight decay :math:`\lambda`:

    * ``norm`` :math:`\|w\|` and ``effective_rate`` :math:`\eta/\|w\|^2`, which for a scale-invariant weight is the
      learning rate of its direction under SGD,
    * ``invariance`` :math:`|\langle w,\nabla L\rangle| / (\|w\|\|\nabla L\|)`: 0 certifies, to rounding and to the eps
      of the normalization, that the loss does not depend on the weight's length, and ``effective_gradient``
      :math:`\|\nabla L\|\,\|w\|`, the gradient at unit length,
    * ``angle`` :math:`\angle(w_{t-1}, w_t)` of the last step in radians, and, for SGD with momentum :math:`\alpha` and
      weight decay, ``angle_equilibrium`` where a scale-invariant weight settles: :math:`\arccos(1-\eta\lambda)` without
      momentum, :math:`\sqrt{2\eta\lambda/(1+\alpha)}` with it,
    * ``orthogonal_energy`` :math:`\|W P_\perp\|^2/\|W\|^2`, the share that no gradient on these data changes: SGD
      leaves it, weight decay shrinks it; of layers with up to 1024 numbers entering a unit,
    * if asked for, ``spherical_sharpness`` :math:`\|w\|^2\lambda_{max}(\nabla_w^2 L)` of a scale-invariant weight (to
      ``invariance`` 0.001): the sharpness at unit length, which gradient descent with weight decay drives to about
      :math:`2 / (\eta/\|w\|^2)`; with its residual as error,

    and of the network, where its layers form chains between which channels can be rescaled (ReLU, pooling, batch norm):
    ``enorm_gap`` :math:`(\|\theta\|^2 - \min_D\|D\theta\|^2) / \|\theta\|^2` of the weights with the same function, and
    ``imbalance``, the largest :math:`|\ln(\|W_{k+1}[:,i]\| / \|W_k[i,:]\|)|` of a channel.

    Gradients are taken on one batch, and the normalizations use its statistics whatever the mode: the running ones
    would not follow the weight's length. Of a reparametrized weight it is the parameter behind it that is measured.

    Source: van Laarhoven, arXiv:1706.05350; Wan et al., NeurIPS 2021, arXiv:2006.08419 (equilibrium); Liu et al.,
    arXiv:2102.03497 (orthogonal energy); Stock et al., ICLR 2019, arXiv:1902.10416 (equi-normalization); Lyu, Li and
    Arora, NeurIPS 2022, arXiv:2206.07085 (spherical sharpness).

    Args:
        samples: how many of the probe data.
        sharpness: whether the spherical sharpness is measured, at up to 60 products of three gradients a layer.
    """

    samples: int = 256
    sharpness: bool = False
    uses_update: ClassVar[bool] = True

    def cost(self, step: Step) -> float:
        """A gradient, a forward pass, orthogonal decompositions of the inputs, and sweeps over the weights."""
        layers = len(list(_weights(step))) if self.sharpness else 0
        return 8.0 + 90 * layers

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: the lens has no optimizer, or no trainable weight of such a layer.
        """
        if step.optimizer is None:
            raise ValueError("weight dynamics needs the optimizer: pass optimizer= to the lens")
        weights = list(_weights(step))
        if not weights:
            raise ValueError(
                "weight dynamics needs at least one trainable parameter that is the weight of a linear or convolution "
                "layer and is stepped by the lens's optimizer; got none: leave this probe out"
            )
        risk = first_batch(step.risk, self.samples)
        with at_the_mean(risk.model), training(risk.model, is_normalization):
            gradient = risk.gradient()
            if self.sharpness:
                yield from _spherical_sharpness(risk, weights, gradient, step.generator)
        n = risk.samples
        for weight in weights:
            yield from _size(weight, gradient[weight.name].double(), n)
            if step.update is not None and weight.name in step.update:
                yield from _turn(weight, step.update[weight.name].double(), step.optimizer)
        yield from _orthogonal_energy(step, {weight.layer for weight in weights}, self.samples)
        yield from _balance(step.risk.model)


class _Weight(NamedTuple):
    """A weight in float64, where it stands and what the optimizer does with it."""

    layer: str
    name: str
    values: Tensor
    group: dict[str, Any]


def _weights(step: Step) -> Iterator[_Weight]:
    groups = {id(p): group for group in step.optimizer.param_groups for p in group["params"]} if step.optimizer else {}
    parameters = {name: p for name, p in step.risk.model.named_parameters() if name in step.risk.parameters}
    for layer, module in step.risk.model.named_modules():
        names = [f"{layer}.{leaf}" if layer else leaf for leaf in _LEAVES] if is_weight_layer(module) else []
        for name in names:
            if name in parameters and id(parameters[name]) in groups:
                yield _Weight(layer, name, parameters[name].detach().double(), groups[id(parameters[name])])


def _spherical_sharpness(
    risk: EmpiricalRisk, weights: list[_Weight], gradient: Named, generator: torch.Generator
) -> list[Reading]:
    found = []
    for weight in weights:
        if _invariance(weight, gradient[weight.name].double()) < _INVARIANT:
            block = hessian(risk.select([weight.name]), check=False)
            pairs = eigsh(block, 1, "LA", tol=1e-2, max_matvecs=60, generator=generator)
            value, error = (float(weight.values.norm() ** 2 * v[0]) for v in (pairs.values, pairs.residuals))
            found.append(Reading("spherical_sharpness", value, error=error, layer=weight.layer, n=risk.samples))
    return found


def _invariance(weight: _Weight, gradient: Tensor) -> float:
    lengths = float(weight.values.norm()) * float(gradient.norm())
    return abs(float((weight.values * gradient).sum())) / lengths if lengths != 0 else math.nan


def _size(weight: _Weight, gradient: Tensor, n: int) -> Iterator[Reading]:
    norm, slope = float(weight.values.norm()), float(gradient.norm())
    invariance = _invariance(weight, gradient)
    yield Reading("norm", norm, layer=weight.layer)
    yield Reading("effective_rate", float(weight.group["lr"]) / norm**2 if norm else math.inf, layer=weight.layer)
    yield Reading("invariance", invariance, layer=weight.layer, n=n)
    yield Reading("effective_gradient", norm * slope, layer=weight.layer, n=n)


def _turn(weight: _Weight, update: Tensor, optimizer: torch.optim.Optimizer) -> Iterator[Reading]:
    yield Reading("angle", angle(weight.values - update, weight.values), layer=weight.layer, units="rad")
    settled = equilibrium_angle(optimizer, weight.group)
    if settled is not None:
        yield Reading("angle_equilibrium", settled, layer=weight.layer, units="rad")


def angle(before: Tensor, after: Tensor) -> float:
    r"""Return the angle between two tensors in radians: :math:`2\arctan(\|u - v\| / \|u + v\|)` of the unit vectors.

    The arc cosine of their product would lose an angle below the root of eps, which updates are.
    """
    u, v = before / before.norm(), after / after.norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


def equilibrium_angle(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float | None:
    """Return the angle by which a scale-invariant weight turns in each step in the end; None where it is not known."""
    decay = float(group.get("weight_decay", 0.0)) * float(group["lr"])
    plain = isinstance(optimizer, torch.optim.SGD) and not group["nesterov"] and not group["dampening"]
    if not plain or not 0 < decay < 1:
        return None
    momentum = float(group["momentum"])
    return math.sqrt(2 * decay / (1 + momentum)) if momentum else math.acos(1 - decay)


def _orthogonal_energy(step: Step, layers: set[str], samples: int) -> Iterator[Reading]:
    def known(name: str, module: nn.Module) -> bool:
        called = name.partition("@")[0] == name and name in layers
        plain = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and getattr(module, "groups", 1) == 1
        return called and plain and "weight" in module._parameters and not parametrize.is_parametrized(module)

    for layer, activation in step.activations(known).items():
        module, inputs = activation.module, activation.input[:samples]
        if math.prod(module.get_parameter("weight").shape[1:]) <= _WIDEST:
            ratio = weight_span_decomposition(module, inputs).ratio
            yield Reading("orthogonal_energy", ratio, layer=layer, n=len(inputs))


def _balance(model: nn.Module) -> Iterator[Reading]:
    try:
        with at_the_mean(model):
            gap, imbalance = weight_balance(model)
    except (ValueError, RuntimeError):  # no chain of layers, or tensors on the modules that cannot be copied
        return
    yield Reading("enorm_gap", gap)
    yield Reading("imbalance", imbalance)
