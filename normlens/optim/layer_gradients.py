"""The gradients of a linear or convolution layer as those of the same layer with centered and scaled inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from normlens.nn.functional import promote
from normlens.optim.weight_layers import WeightLayer, groups_of

__all__ = ["check_biases", "check_channels", "has_gradients", "precondition_gradients"]


def precondition_gradients(
    layer: WeightLayer, mean: Tensor | None, precision: Tensor | None = None, scale: float = 1.0
) -> None:
    r"""Make the gradients of a layer :math:`PP^\top` times what they are, in place; P normalizes the inputs.

    .. math:: G_W \leftarrow s\,(G_W - G_b\mu^\top)\operatorname{diag}(p), \quad
              G_b \leftarrow s\,G_b - G_W\mu

    The second takes the new :math:`G_W`. Of a convolution, mu and p are per input channel of its group, the same at
    every place of the kernel, and the last product sums over the kernel.

    Args:
        layer: with a gradient of the weight, and of the bias where there is a mean.
        mean: mu, (groups, channels / groups); None for no centering.
        precision: p, of the same shape; None for 1.
        scale: s.
    """
    grad, of_bias = _gradient(layer.weight), None if (parameter := layer.bias) is None else parameter.grad
    weight = promote(grad).contiguous()  # the same tensor, unless it is of half precision or laid out otherwise
    groups = groups_of(layer)
    rows = weight.view(groups, len(weight) // groups, -1)
    bias = None if of_bias is None else promote(of_bias)
    column = None if bias is None else bias.view(*rows.shape[:2], 1)
    at_mean = None if mean is None or column is None else _per_weight(mean, rows)
    if at_mean is not None and column is not None:
        rows.baddbmm_(column, at_mean, alpha=-1)
    if precision is not None:
        rows.mul_(_per_weight(precision if scale == 1 else scale * precision, rows))
    elif scale != 1:
        rows.mul_(scale)
    if column is not None and scale != 1:
        column.mul_(scale)
    if at_mean is not None and column is not None:
        column.baddbmm_(rows, at_mean.mT, alpha=-1)
    _write(grad, weight)
    _write(of_bias, bias)


def has_gradients(name: str, layer: WeightLayer, *, what: str, bias: bool) -> bool:
    """Return whether the weight of a layer has a gradient.

    Args:
        name: of the layer, for the message.
        layer: the layer.
        what: who asks, for the message.
        bias: whether the bias must have one then, too.

    Raises:
        ValueError: it has one, and the bias, which should, has none.
    """
    if layer.weight.grad is None:
        return False
    if bias and ((of_bias := layer.bias) is None or of_bias.grad is None):
        raise ValueError(
            f"{what} needs the gradients of weight and bias together; layer {name!r} has that of its weight alone; "
            "freeze both or none"
        )
    return True


def check_biases(layers: Mapping[str, WeightLayer], optimizer: torch.optim.Optimizer, *, what: str) -> None:
    """Refuse layers that have no bias which the optimizer steps: without one inputs cannot be centered.

    Args:
        layers: by name.
        optimizer: the optimizer.
        what: who asks, for the message.

    Raises:
        ValueError: there is one.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, layer in layers.items() if layer.bias is None or id(layer.bias) not in held]
    if missing:
        raise ValueError(
            f"{what} needs a bias, stepped by the same optimizer, in every layer whose input it centers; got none in "
            f"{', '.join(map(repr, missing))}; build them with bias=True, or set centering=False"
        )


def check_channels(means: Mapping[str, Tensor], layers: Mapping[str, WeightLayer], *, what: str) -> None:
    """Refuse a state that is not of these layers.

    Args:
        means: of the state, by layer, (groups, channels / groups).
        layers: by name.
        what: who asks, for the message.

    Raises:
        ValueError: it names another layer, or one of another size.
    """
    for name, mean in means.items():
        if name not in layers:
            raise ValueError(f"{what} needs a state of its own layers; got layer {name!r}; it has {sorted(layers)}")
        layer = layers[name]
        expected = (groups_of(layer), layer.weight.shape[1])
        if tuple(mean.shape) != expected:
            raise ValueError(
                f"{what} needs a state of {expected} (groups, channels) for layer {name!r}; got {tuple(mean.shape)}; "
                "load it into the model that it is from"
            )


def _gradient(parameter: Tensor | None) -> Tensor:
    assert parameter is not None
    assert parameter.grad is not None
    return parameter.grad


def _per_weight(values: Tensor, rows: Tensor) -> Tensor:
    """Repeat values (groups, channels / groups) for the places of the kernel, to a row of each: (groups, 1, -1)."""
    groups, channels = values.shape
    places = rows.shape[2] // channels
    return values.to(rows).view(groups, 1, channels, 1).expand(-1, -1, -1, places).reshape(groups, 1, -1)


def _write(target: Tensor | None, value: Tensor | None) -> None:
    if target is not value and target is not None and value is not None:
        target.copy_(value)
