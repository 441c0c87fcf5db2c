"""Activations of a model's layers, from one forward pass of our own."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normlens.risk import EmpiricalRisk

__all__ = ["Activation", "Layers", "capture", "choose"]

Layers = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Which modules: a glob or several ("block1.*"), a predicate ``(name, module) -> bool``, or None for all."""

_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class Activation:
    """What went into a module and what came out, on the probe batch.

    Attributes:
        module: the module itself.
        input: its first tensor argument, copied before the module could overwrite it.
        output: the first tensor that it returned.
        input_channels: the dimension of ``input`` that counts channels.
        output_channels: the same for ``output``.
    """

    module: nn.Module
    input: Tensor
    output: Tensor
    input_channels: int = 1
    output_channels: int = 1

    @property
    def input_samples(self) -> Tensor:
        """The input as (samples, positions, channels)."""
        return _by_channel(self.input, self.input_channels)

    @property
    def output_samples(self) -> Tensor:
        """The output as (samples, positions, channels)."""
        return _by_channel(self.output, self.output_channels)


def capture(risk: EmpiricalRisk) -> dict[str, Activation]:
    """Run the model once over the data of ``risk`` and return each module's input and output.

    Names are those of ``named_modules()``, in the order of the first call; a module that is called again appears
    again as ``name@2``, ``name@3``. Batches are concatenated along their first dimension. Channels are the last
    dimension for linear, embedding, recurrent and attention layers and for torch's LayerNorm and RMSNorm over one
    dimension, and dimension 1 for convolutions. A module without a layout of its own takes that of its input (ReLU,
    dropout) or of its last part (a block), and dimension 1 where that is not known.

    Args:
        risk: its model, mode and data are used; nothing of them is changed.

    Raises:
        ValueError: the data are empty.
    """
    recorder = _Recorder()
    named = [(name, module) for name, module in risk.model.named_modules() if name]
    handles = [module.register_forward_pre_hook(recorder.before(name), with_kwargs=True) for name, module in named]
    handles += [module.register_forward_hook(recorder.after) for _, module in named]
    passes = []
    try:
        for _ in risk.outputs():
            passes.append(recorder.take())
    finally:
        for handle in handles:
            handle.remove()
    if not passes:
        raise ValueError("the probe data must hold at least one batch; got none (an exhausted iterator? pass a list)")
    called = dict.fromkeys(name for one in passes for name in one)  # a loop may be longer in one batch than in another
    return {name: _joined([one[name] for one in passes if name in one]) for name in called}


def choose(activations: Mapping[str, Activation], layers: Layers) -> dict[str, Activation]:
    """Keep the activations of the chosen layers, in network order.

    Raises:
        ValueError: a pattern matches no module that was called.
    """
    if layers is None:
        return dict(activations)
    if callable(layers):
        return {name: a for name, a in activations.items() if layers(name, a.module)}
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in activations):
            raise ValueError(f"layers must match called modules; {pattern!r} matches none of {list(activations)[:12]}")
    return {name: a for name, a in activations.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}


@dataclass
class _Recorder:
    """Collects one forward pass; a tensor that several modules see unchanged is copied once."""

    found: dict[str, Activation] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    pending: list[tuple[str, nn.Module, Tensor | None, int]] = field(default_factory=list)
    copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    layout: dict[int, int] = field(default_factory=dict)

    def before(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any) -> None:
            tensor = _first_tensor((arguments, keywords))
            channels = 1 if tensor is None else self._channels(module, tensor, _own_layout(module, tensor))
            self.started.append(self._free(name))
            self.pending.append((self.started[-1], module, None if tensor is None else self._copy(tensor), channels))

        return hook

    def after(self, module: nn.Module, _arguments: Any, result: Any) -> None:
        name, called, source, channels = self.pending.pop()
        while called is not module:  # a call inside it that raised, and whose error the model caught
            name, called, source, channels = self.pending.pop()
        tensor = _first_tensor(result)
        if source is None or tensor is None:
            return
        keeps = tensor.shape == source.shape
        out = self._channels(module, tensor, channels if keeps else _own_layout(module, tensor))
        kept = self._copy(tensor)  # which also keeps the tensor alive, so that its id stays its own
        self.layout[id(tensor)] = out
        self.found[name] = Activation(module, source, kept, channels, out)

    def take(self) -> dict[str, Activation]:
        """Return the pass just made, by order of the first call, and forget it."""
        found = {name: self.found[name] for name in self.started if name in self.found}
        self.found, self.started, self.pending, self.copies, self.layout = {}, [], [], {}, {}
        return found

    def _channels(self, module: nn.Module, tensor: Tensor, otherwise: int) -> int:
        """Return the module's own layout, or that with which the tensor came out of another one, or ``otherwise``."""
        return _own_layout(module, tensor) if _has_layout(module) else self.layout.get(id(tensor), otherwise)

    def _copy(self, tensor: Tensor) -> Tensor:
        key = (id(tensor), tensor._version)
        if key not in self.copies:
            self.copies[key] = (tensor, tensor.detach().clone())
        return self.copies[key][1]

    def _free(self, name: str) -> str:
        calls = sum(1 for other in self.started if other.partition("@")[0] == name)
        return name if calls == 0 else f"{name}@{calls + 1}"


def _has_layout(module: nn.Module) -> bool:
    return _is_last(module) or isinstance(module, nn.modules.conv._ConvNd)


def _is_last(module: nn.Module) -> bool:
    """A norm over (C, H, W) does not say which of them are the channels."""
    return isinstance(module, _LAST) and len(getattr(module, "normalized_shape", (1,))) == 1


def _own_layout(module: nn.Module, tensor: Tensor) -> int:
    return tensor.ndim - 1 if _is_last(module) else min(1, tensor.ndim - 1)


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.ndim else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((found for item in value if (found := _first_tensor(item)) is not None), None)
    return None


def _by_channel(tensor: Tensor, channels: int) -> Tensor:
    """Bring (N, C, *spatial) or (N, …, C) to (samples, positions, channels)."""
    moved = tensor.movedim(channels, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1]) if moved.ndim > 1 else moved.reshape(-1, 1, 1)


def _joined(parts: list[Activation]) -> Activation:
    first = parts[0]
    if len(parts) == 1:
        return first
    return Activation(
        first.module,
        torch.cat([part.input for part in parts]),
        torch.cat([part.output for part in parts]),
        first.input_channels,
        first.output_channels,
    )
