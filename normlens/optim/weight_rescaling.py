"""WRS: weights that a normalization makes scale-invariant are put back to a fixed norm, instead of being decayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from normlens.nn.functional import promote
from normlens.nn.vocabulary import channels, concept
from normlens.optim.forward_graph import module_calls, trace_forward
from normlens.optim.transform import Transform
from normlens.optim.weight_layers import WeightLayer, weight_layers
from normlens.risk import eager_module

__all__ = ["WeightRescaling"]

_PER_CHANNEL = {"BatchNorm", "InstanceNorm"}
_ACROSS_CHANNELS = {"GroupNorm", "LayerNorm", "RMSNorm"}


@dataclass(frozen=True)
class _Normalized:
    """A weight layer and the normalization that takes its output."""

    name: str
    layer: WeightLayer
    norm: Any


class WeightRescaling(Transform):
    r"""Rescale weights that a normalization follows to a fixed norm, after every ``interval``-th step (WRS).

    .. math:: w \leftarrow c\, w, \qquad c = \text{norm} / \|w\|

    for each filter (row) ``w``, or for each layer's whole weight. The network's function stays, and its gradient by
    ``w`` is divided by ``c``: without this the gradient, orthogonal to ``w``, lengthens it at every step and shrinks
    the effective learning rate ``lr / |w|^2``. It takes the place of weight decay on these weights: give them
    ``weight_decay=0``. With the running statistics of a batch norm (or a tracking instance norm) ``running_mean``
    becomes ``c (running_mean - b) + b`` and ``running_var`` ``c^2 running_var``, for a layer with bias ``b``: otherwise
    eval mode is off until they have followed.

    Momentum buffers are left as they are, and so are biases, the norm's own parameters and layers that no norm follows.
    Units: that of the weights. Valid (the function is exactly the same) for ``eps = 0``; otherwise the output moves by
    about ``eps / (2 var) |1 - 1 / c^2|``, relative. A filter of zero stays.

    Source: Z. Liu et al., Weight Rescaling: Effective and Robust Regularization for Deep Neural Networks with Batch
    Normalization, arXiv:2102.03497. No code was found; granularity and interval are our defaults.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of its parameters.
        pairs: the name of each weight layer with that of the norm that takes its output; None finds them in the forward
            graph, where a norm follows directly.
        norm: the Euclidean norm that weights get; None for the one each has now.
        granularity: "filter" (each row by itself, for batch and instance norm) or "layer" (the whole weight, also for
            group, layer and RMS norm).
        interval: steps from one rescaling to the next.
        fix_running_stats: whether running statistics are carried along.

    Raises:
        ValueError: no such layers, a norm that the granularity or a bias is not invisible to, or settings out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        pairs: Mapping[str, str] | None = None,
        *,
        norm: float | None = 1.0,
        granularity: Literal["filter", "layer"] = "filter",
        interval: int = 1,
        fix_running_stats: bool = True,
    ) -> None:
        _check_settings(norm, granularity, interval)
        self.norm, self.granularity, self.interval = norm, granularity, interval
        self.fix_running_stats, self.steps = fix_running_stats, 0
        layers = weight_layers(eager_module(model), optimizer, what="WeightRescaling")
        self._normalized = _normalized(model, layers, _follow(model, layers) if pairs is None else pairs)
        for found in self._normalized:
            _check_invisible(found, granularity)
        self._targets = {n.name: self._norms(n.layer.weight.detach()) for n in self._normalized} if norm is None else {}
        super().__init__(model, optimizer)

    def after_step(self) -> None:
        """Count the step, and rescale when it is due."""
        self.steps += 1
        if self.steps % self.interval == 0:
            for found in self._normalized:
                self._rescale(found)

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps there were, and the norms that are kept where they are those of the beginning."""
        return {"steps": self.steps, "targets": {name: target.clone() for name, target in self._targets.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned.

        Args:
            state_dict: that state.

        Raises:
            ValueError: it is the state of something else.
        """
        targets = state_dict.get("targets", {})
        if state_dict.keys() != {"steps", "targets"} or targets.keys() != self._targets.keys():
            raise ValueError(
                f"WeightRescaling needs the state of one for the same layers, {sorted(self._targets)}; got "
                f"{sorted(state_dict)} with {sorted(targets)}; build it with the same settings"
            )
        self.steps = int(state_dict["steps"])
        for name, target in targets.items():
            self._targets[name] = target.to(self._targets[name])

    def _norms(self, weight: Tensor) -> Tensor:
        """Return the norm of each row, or the one of the whole weight."""
        rows = promote(weight).flatten(1) if self.granularity == "filter" else promote(weight).flatten()
        norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
        return norms

    def _rescale(self, found: _Normalized) -> None:
        weight, bias = found.layer.weight, found.layer.bias
        norms = self._norms(weight)
        target = self._targets[found.name] if self.norm is None else self.norm
        scale = torch.where(norms > 0, target / norms, torch.ones_like(norms))
        weight.mul_(scale.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1)))
        mean, var = getattr(found.norm, "running_mean", None), getattr(found.norm, "running_var", None)
        if self.fix_running_stats and mean is not None and var is not None:
            mean.copy_(scale * mean if bias is None else scale * (mean - bias) + bias)
            var.mul_(scale.square().to(var.dtype))


def _check_settings(norm: float | None, granularity: str, interval: int) -> None:
    if granularity not in {"filter", "layer"}:
        raise ValueError(f"WeightRescaling needs granularity 'filter' or 'layer'; got {granularity!r}; choose one")
    if (norm is not None and not norm > 0) or interval < 1:
        raise ValueError(
            f"WeightRescaling needs a norm above 0 and an interval of at least 1; got norm={norm} and "
            f"interval={interval}; the defaults are 1.0 and 1"
        )


def _follow(model: nn.Module, layers: Mapping[str, WeightLayer]) -> dict[str, str]:
    """Find the norm that directly takes the output of each layer, where there is one."""
    advice = "name the pairs yourself: {'conv1': 'bn1', ...}"
    graph = trace_forward(model, what="WeightRescaling", advice=advice)
    known = {name for name, m in eager_module(model).named_modules() if concept(m) in _PER_CHANNEL | _ACROSS_CHANNELS}
    calls = module_calls(graph, what="WeightRescaling", modules=frozenset({*layers, *known}))
    pairs = {}
    for name in layers:
        users: list[fx.Node] = list(calls[name].users) if name in calls else []
        if len(users) == 1 and users[0].op == "call_module" and users[0].target in known:
            pairs[name] = str(users[0].target)
    return pairs


def _normalized(model: nn.Module, layers: Mapping[str, WeightLayer], pairs: Mapping[str, str]) -> list[_Normalized]:
    modules = dict(eager_module(model).named_modules())
    for name, norm in pairs.items():
        if name not in layers or norm not in modules:
            raise ValueError(
                f"WeightRescaling needs pairs of a weight layer that the optimizer steps and a norm; got {name!r}: "
                f"{norm!r}; choose from {list(layers)} and from model.named_modules()"
            )
    if not pairs:
        raise ValueError(
            "WeightRescaling needs a weight layer that a normalization follows directly; got none; without one the "
            "function depends on the weights' norms: leave it out"
        )
    if len(set(pairs.values())) < len(pairs):
        raise ValueError(
            f"WeightRescaling needs a norm of its own for each layer; got {dict(pairs)}; leave out what shares one"
        )
    return [_Normalized(name, layers[name], modules[norm]) for name, norm in pairs.items()]


def _check_invisible(found: _Normalized, granularity: str) -> None:
    kind, bias = concept(found.norm), found.layer.bias is not None
    if kind in _PER_CHANNEL and channels(found.norm) != len(found.layer.weight):
        raise ValueError(
            f"WeightRescaling needs a norm of the layer's output channels; got {channels(found.norm)} after "
            f"{found.name} with {len(found.layer.weight)}; correct the pairs"
        )
    across = kind in _ACROSS_CHANNELS and granularity == "layer" and not bias
    if kind in _PER_CHANNEL or across:
        return
    raise ValueError(
        "WeightRescaling needs a norm that the rescaling cannot be seen through: batch or instance norm, or with "
        "granularity='layer' and a layer without bias also group, layer or RMS norm; got "
        f"{kind} after {found.name}{' with a bias' if bias else ''} and granularity={granularity!r}; "
        "leave it out of pairs"
    )
