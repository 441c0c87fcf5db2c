"""What goes into the weight layers of a model in training: the moments of every input channel since the last step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normlens.nn.functional import channel_matrix, promote
from normlens.optim.weight_layers import WeightLayer, groups_of

__all__ = ["InputMoments", "InputStatistics", "Measure", "covariances", "gathered", "means", "pooled", "variances"]

Measure: TypeAlias = Callable[[Tensor, int], "tuple[Tensor, Tensor | None]"]
"""From an input ``(N, C, *spatial)`` and the number of groups: the means (groups, C / groups), and a spread or None."""


class InputMoments(NamedTuple):
    """What is known of a layer's input.

    Attributes:
        mean: of each channel, (groups, C / groups), in at least float32.
        spread: None, the variances (groups, C / groups) or the covariances (groups, C / groups, C / groups), biased.
        values: how many values of each channel they rest on: samples times positions.
        outputs: how many outputs each unit had for them: samples times output positions.
        samples: how many samples, of a linear layer: rows.
    """

    mean: Tensor
    spread: Tensor | None
    values: int
    outputs: int
    samples: int


class InputStatistics:
    """Moments of the inputs of weight layers, from forward hooks: of all passes that the next step is from.

    A pass counts when the layer is in train mode and gradients are enabled. Several passes before a step are pooled by
    the law of total variance. A pass whose gradient was thrown away (set to None before the next pass, as after a step
    that a ``GradScaler`` skipped) is forgotten.

    Args:
        layers: the layers by name.
        measure: :func:`means`, :func:`variances` or :func:`covariances`.

    Raises:
        ValueError: several processes train together; each would know its own inputs alone.
    """

    def __init__(self, layers: Mapping[str, WeightLayer], measure: Measure) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"statistics of inputs need one process, for replicas that know different inputs drift apart; got "
                f"{dist.get_world_size()} processes; train in one"
            )
        self.active = set(layers)  # the names of those that are watched
        self._layers, self._measure = dict(layers), measure
        self._pending: dict[str, InputMoments] = {}
        self._arrived: set[str] = set()  # the layers whose gradient came after the pending passes
        self._handles: list[RemovableHandle] = []
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(partial(self._see, name), with_kwargs=True))
            arrive = partial(self._arrive, name)
            self._handles.append(layer.weight.register_post_accumulate_grad_hook(arrive))  # type: ignore[no-untyped-call]

    def take(self) -> dict[str, InputMoments]:
        """Return the moments since the last call, of the layers whose weight has a gradient, and begin anew."""
        found = {name: seen for name, seen in self._pending.items() if self._layers[name].weight.grad is not None}
        self._pending.clear()
        self._arrived.clear()
        return found

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _arrive(self, name: str, weight: Tensor) -> None:
        self._arrived.add(name)

    def _see(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not (name in self.active and layer.training and torch.is_grad_enabled()):
            return
        of_layer = self._layers[name]
        if name in self._arrived and of_layer.weight.grad is None:
            self._pending.pop(name, None)
            self._arrived.discard(name)
        x = _channels_second(of_layer, (args[0] if args else kwargs["input"]).detach())
        if x.numel() == 0:
            return
        mean, spread = self._measure(x, groups_of(of_layer))
        outputs = output.numel() // of_layer.weight.shape[0]
        seen = InputMoments(mean, spread, x.numel() // x.shape[1], outputs, x.shape[0])
        self._pending[name] = seen if name not in self._pending else gathered(self._pending[name], seen)


def means(x: Tensor, groups: int) -> tuple[Tensor, None]:
    """Return the mean of each channel over samples and positions, and no spread.

    Args:
        x: ``(N, C, *spatial)``.
        groups: of the channels.
    """
    return promote(x).mean((0, *range(2, x.dim()))).view(groups, -1), None


def variances(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel over samples and positions.

    Args:
        x: ``(N, C, *spatial)``.
        groups: of the channels.
    """
    # Two passes, as functional.moments goes, but over one copy laid out by channels: this costs a small step least.
    wide = promote(x)
    if x.dim() == 2:
        mean = wide.mean(0)
        return mean.view(groups, -1), (wide - mean).square_().mean(0).view(groups, -1)
    rows = wide.transpose(0, 1).clone(memory_format=torch.contiguous_format).view(x.shape[1], -1)
    mean = rows.mean(1, keepdim=True)
    return mean.view(groups, -1), rows.sub_(mean).square_().mean(1).view(groups, -1)


def covariances(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased covariance of the channels of each group over samples and positions.

    Args:
        x: ``(N, C, *spatial)``.
        groups: of the channels.
    """
    rows = channel_matrix(promote(x)).view(groups, x.shape[1] // groups, -1)
    mean = rows.mean(2, keepdim=True)
    centered = rows - mean
    return mean.squeeze(2), centered @ centered.mT / rows.shape[2]


def gathered(old: InputMoments, new: InputMoments) -> InputMoments:
    """Return the moments of two samples put together.

    Args:
        old: the first.
        new: the second.
    """
    return pooled(old, new, new.values / (old.values + new.values))


def pooled(old: InputMoments, new: InputMoments, share: float, *, between: bool = True) -> InputMoments:
    r"""Return the moments of a mixture of two samples, by the law of total variance.

    .. math:: \mu = (1 - s)\mu_0 + s\mu_1, \quad
              \Sigma = (1 - s)\Sigma_0 + s\Sigma_1 + s(1 - s)(\mu_1 - \mu_0)(\mu_1 - \mu_0)^\top

    Args:
        old: the first.
        new: the second; its device and dtype are those of the result.
        share: s, of the second.
        between: False to leave out the last term, how far apart the means lie.
    """
    mean, spread = old.mean.to(new.mean), None
    if old.spread is not None and new.spread is not None:
        spread = torch.lerp(old.spread.to(new.spread), new.spread, share)
        if between:
            apart = new.mean - mean
            pair = (apart, apart) if spread.dim() == apart.dim() else (apart.unsqueeze(-1), apart.unsqueeze(-2))
            spread.addcmul_(*pair, value=share * (1 - share))
    counts = (old.values + new.values, old.outputs + new.outputs, old.samples + new.samples)
    return InputMoments(torch.lerp(mean, new.mean, share), spread, *counts)


def _channels_second(layer: WeightLayer, x: Tensor) -> Tensor:
    """View a layer's input as ``(N, C, *spatial)``: all but the last axis of a linear one are samples."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    return x if x.dim() == layer.weight.dim() else x.unsqueeze(0)
