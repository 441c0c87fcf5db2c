"""Which modules are called, and whether each reads exactly what the one before it returned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from normlens.probes.module_kinds import is_normalization, is_weight_layer

__all__ = ["Link", "linked_calls"]


@dataclass(frozen=True)
class Link:
    """One call of a module that is not made of others.

    Attributes:
        module: which.
        follows: whether its input is the output of the call before, up to its shape. Where a sum of a skip connection,
            a function that is no module, or a branch stands between them, it is not.
    """

    module: nn.Module
    follows: bool


@contextmanager
def linked_calls(model: nn.Module) -> Iterator[list[Link]]:
    """Collect the calls made within the block, in their order; the hooks that do so are gone after it.

    Weight layers and normalizations count as one module each, whatever they are made of.

    Args:
        model: whose modules are watched.
    """
    recorder = _Recorder()
    with ExitStack() as undo:
        for module in {id(leaf): leaf for leaf in _leaves(model)}.values():
            undo.callback(module.register_forward_pre_hook(recorder.before).remove)
            undo.callback(module.register_forward_hook(recorder.after).remove)
        yield recorder.links


@dataclass
class _Recorder:
    """Holds the last output, so that no other tensor takes its place in memory."""

    links: list[Link] = field(default_factory=list)
    last: tuple[Tensor, object] | None = None

    def before(self, module: nn.Module, arguments: Any) -> None:
        first = next(iter(arguments), None)
        follows = isinstance(first, Tensor) and self.last is not None and self.last[1] == _identity(first)
        self.links.append(Link(module, follows))

    def after(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        self.last = (output, _identity(output)) if isinstance(output, Tensor) else None


def _identity(tensor: Tensor) -> object:
    """Where the numbers lie, how many they are, and how often they were written to: the same for a view of all."""
    return tensor.data_ptr(), tensor.numel(), tensor._version


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if is_weight_layer(module) or is_normalization(module) or not list(module.children()):
        yield module
        return
    for child in module.children():
        yield from _leaves(child)
