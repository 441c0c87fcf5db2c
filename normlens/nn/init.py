"""Where weights start: Xavier's and He's rules from PyTorch, quaternions, normalization propagation, and from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.init import kaiming_normal_, kaiming_uniform_, xavier_normal_, xavier_uniform_
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from normlens.nn.functional import moments
from normlens.nn.parametrize.weight_norm import WeightNorm
from normlens.nn.weighted.activation_constants import ActivationConstants
from normlens.nn.weighted.base import draw_normal_
from normlens.random_state import preserved_random_state

__all__ = [
    "data_dependent_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normprop_",
    "quaternion_",
    "xavier_normal_",
    "xavier_uniform_",
]


def normprop_(gain: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """Fill a gain with where normalization propagation starts it, and return it.

    ``gain = std / sqrt(E[f'(Z)^2])``, ``std`` that of ``f(Z)``, ``Z ~ N(0, 1)``: for ReLU ``sqrt((pi - 1) / pi) =
    0.8256 = 1 / 1.21``. There ``(f(gain W x) - mean) / std`` with orthonormal rows ``W`` has a Jacobian ``J`` with
    ``E[J J'] = I`` for ReLU, and nearly so for others. The weights may have any length: only their direction counts.

    Shapes: any; dimensionless.

    Valid for units with bias 0 and inputs of mean 0 and covariance 1. :class:`normlens.nn.weighted.NormPropLinear` and
    ``NormPropConv`` start so by themselves.

    Source: Arpit, Zhou, Kota and Govindaraju, ICML 2016, arXiv:1603.01431, for ReLU; other activations are derived.

    Args:
        gain: filled in place.
        activation: elementwise, without parameters.

    Raises:
        ValueError: an activation without constants.
    """
    constants = ActivationConstants.of(activation)
    return nn.init.constant_(gain, constants.std / constants.slope)


@torch.no_grad()
def quaternion_(weight: Tensor, *, generator: torch.Generator, rule: Literal["glorot", "he"] = "glorot") -> Tensor:
    """Draw the real weight of a quaternion layer, and return it.

    ``w = |w| (cos(a) + u sin(a))``: the modulus is ``s`` times a chi of four degrees of freedom, so that
    ``E|w|^2 = 4 s^2``; the phase ``a`` is uniform on ``(-pi, pi)``; the axis ``u`` is uniform in the cube ``(-1, 1)^3``
    and scaled to length one. With fans counted in quaternions times the size of the kernel, ``s`` is
    ``1 / sqrt(2 (fan_in + fan_out))`` for "glorot" and ``1 / sqrt(2 fan_in)`` for "he".

    Shapes: ``(4, out / 4, in / 4, *kernel)``, the parts r, i, j, k one after another; ``(4, in / 4, out / 4, *kernel)``
    of a transposed convolution exchanges the fans.

    Valid for any floating dtype: float64 numbers are drawn and rounded. Axes of the cube favor its diagonals; uniform
    on the sphere they are not.

    Source: Parcollet, Morchid and Linares, ICASSP 2019, arXiv:1811.02656, and their published code for the axis.

    Args:
        weight: filled in place.
        generator: the source of the numbers.
        rule: for ``s``.

    Raises:
        ValueError: another shape or an unknown rule.
    """
    if weight.dim() < 3 or weight.shape[0] != 4 or rule not in ("glorot", "he"):
        raise ValueError(
            "quaternion_ needs a weight (4, out / 4, in / 4, *kernel) and the rule 'glorot' or 'he'; "
            f"got {tuple(weight.shape)} and {rule!r}; stack the parts r, i, j, k along a first dimension"
        )
    kernel = math.prod(weight.shape[3:])
    fan_out, fan_in = weight.shape[1] * kernel, weight.shape[2] * kernel
    scale = 1 / math.sqrt(2 * (fan_in + fan_out if rule == "glorot" else fan_in))

    def draw(parts: int, sample: Callable[..., Tensor]) -> Tensor:
        shape = (parts, *weight.shape[1:])
        return sample(shape, generator=generator, device=generator.device, dtype=torch.float64)

    modulus = scale * draw(4, torch.randn).square().sum(0).sqrt()
    phase = math.pi * (2 * draw(1, torch.rand) - 1)
    axis = 2 * draw(3, torch.rand) - 1
    axis = axis / axis.square().sum(0).sqrt()
    return weight.copy_(modulus * torch.cat([phase.cos(), axis * phase.sin()]))


def data_dependent_(
    model: nn.Module, inputs: Any, *, generator: torch.Generator | None = None, std: float = 0.05
) -> nn.Module:
    """Start the weight-normalized layers of a model from one batch, in the order of its forward pass; return the model.

    ``g = 1 / sd[t]``, ``b = -mean[t] / sd[t]`` with ``t = v . x / |v|`` of each unit, over the batch and all positions,
    so that each layer's output has mean 0 and variance 1 on this batch, given what the layers before it became. It is
    for weights under :func:`normlens.nn.parametrize.weight_norm` or PyTorch's own of that name.

    Shapes: ``inputs`` as ``model(inputs)`` takes them.

    Valid for the mode the model stands in: with dropout or batch norm between the layers the outputs are standardized
    for this pass. Buffers and random states are put back afterwards. ``sd`` is the biased standard deviation.

    Source: Salimans and Kingma, NeurIPS 2016, arXiv:1602.07868, section 3, with ``v ~ N(0, 0.05^2)``.

    Args:
        model: changed in place; after an error it is as it was.
        inputs: one batch.
        generator: redraws ``v`` from ``N(0, std^2)`` before; None keeps the directions as they are.
        std: see ``generator``; its value has no effect on the output, only on the effective learning rate.

    Raises:
        ValueError: no weight-normalized layer, or one that cannot be treated: recurrent, without a bias, with another
            ``dim`` than that of its units, under further reparametrizations, run not exactly once, or with a unit that
            is constant on this batch.
    """
    found = {name or "the model": module for name, module in model.named_modules() if _normalized(module)}
    layers = {name: _treatable(name, module) for name, module in found.items()}
    if not layers:
        raise ValueError(
            "data_dependent_ needs a layer under weight_norm; got a model without; "
            "put normlens.nn.parametrize.weight_norm on its layers first"
        )
    seen: list[str] = []
    with _undone_on_error(model), preserved_random_state(), ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():
            if generator is not None:
                draw_normal_(layer.parametrizations.weight.original1, std=std, generator=generator)
            handle = layer.register_forward_pre_hook(_start(name, seen), with_kwargs=True)
            hooks.callback(handle.remove)
        model(inputs)
        if missed := [name for name in layers if name not in seen]:
            raise ValueError(
                f"data_dependent_ needs every weight-normalized layer to run; got none of {', '.join(missed)} in "
                "model(inputs); give inputs that reach them, or treat the part of the model that runs"
            )
    return model


def _start(name: str, seen: list[str]) -> Callable[..., None]:
    """Make a hook that sets the gain and the bias of a layer just before it runs."""

    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in seen:
            raise ValueError(
                f"data_dependent_ needs each layer to run once; got a second run of {name}, whose inputs have "
                "statistics of their own; leave weight_norm off layers that are used again"
            )
        seen.append(name)
        gain = layer.parametrizations.weight.original0
        gain.fill_(1.0)
        layer.bias.zero_()
        units = layer.forward(*args, **kwargs).movedim(_unit_axis(layer), -1).flatten(0, -2)
        mean, var = (statistic.squeeze(0) for statistic in moments(units, (0,)))
        sd = var.sqrt()
        _check_varies(name, mean, sd)
        gain.copy_((1 / sd).view_as(gain))
        layer.bias.copy_(-mean / sd)

    return hook


def _normalized(module: Any) -> bool:
    kinds = (WeightNorm, _WeightNorm)
    return parametrize.is_parametrized(module) and any(
        isinstance(entry, kinds) for entries in module.parametrizations.values() for entry in entries
    )


def _treatable(name: str, layer: nn.Module) -> Any:
    """Return the layer, of which the type checker cannot know what it has."""
    if problem := _problem(layer):
        raise ValueError(
            f"data_dependent_ needs weight_norm alone on the weight of torch.nn.Linear or a convolution with a bias, "
            f"and a gain for each unit; got {name}, which {problem}; leave weight_norm off it, or start it by hand"
        )
    return layer


def _problem(layer: Any) -> str | None:
    kind = parametrize.type_before_parametrizations(layer)
    if not issubclass(kind, nn.Linear | _ConvNd):
        return f"is a {kind.__name__}"
    if not isinstance(layer._parameters.get("bias"), nn.Parameter):
        return "has no plain bias"
    if list(layer.parametrizations) != ["weight"] or len(layer.parametrizations.weight) != 1:
        return "has further reparametrizations"
    gain, axis = layer.parametrizations.weight.original0, int(issubclass(kind, _ConvTransposeNd))
    units = layer.bias.numel()
    if gain.shape[axis] != units or gain.numel() != units:
        return f"has {units} units and a gain of shape {tuple(gain.shape)}"
    return None


def _unit_axis(layer: Any) -> int:
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)


def _check_varies(name: str, mean: Tensor, sd: Tensor) -> None:
    constant = (sd <= 8 * torch.finfo(sd.dtype).eps * mean.abs()).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"data_dependent_ needs every unit to vary over the batch; got {len(constant)} of {name} that do not, the "
            f"first unit {constant[0]}; give a larger batch, or inputs that reach the unit"
        )


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    """Put buffers back at the end, and parameters too where there was an error."""
    with torch.no_grad():
        parameters = [(p, p.clone()) for p in model.parameters()]
        buffers = [(b, b.clone()) for b in model.buffers()]
        try:
            yield
        except BaseException:
            buffers += parameters
            raise
        finally:
            for live, kept in buffers:
                live.copy_(kept)
