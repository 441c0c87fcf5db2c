"""The user's hooks, silenced while our own forward pass runs; those with which torch computes weights still act."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module as torch_module

__all__ = ["silenced_hooks"]

_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@contextmanager
def silenced_hooks(model: torch.nn.Module) -> Iterator[None]:
    """Give every module its own hook tables without the user's hooks; the caller puts the old tables back.

    Hooks of modules are silenced by new tables, which :func:`normlens.module_state.preserved_attributes` (to be
    entered first) replaces by the user's own ones afterwards. Hooks on all modules (``register_module_*``) and on
    tensors are put back here.
    """
    everywhere = [dict(hooks) for hooks in _GLOBAL_HOOKS]
    on_tensors = [(hooks, dict(hooks)) for p in model.parameters() for n in _TENSOR_HOOKS if (hooks := getattr(p, n))]
    try:
        for module in model.modules():
            for name in _MODULE_HOOKS:
                vars(module)[name] = OrderedDict(_torch_hooks(getattr(module, name)))
        for hooks in _GLOBAL_HOOKS:
            hooks.clear()
        for hooks, _ in on_tensors:
            hooks.clear()
        yield
    finally:
        for hooks, before in [*zip(_GLOBAL_HOOKS, everywhere, strict=True), *on_tensors]:
            hooks.clear()
            hooks.update(before)


def _torch_hooks(hooks: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    return ((key, hook) for key, hook in hooks.items() if _origin(hook).startswith("torch."))


def _origin(hook: Any) -> str:
    """Return the module that a hook's code comes from."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    owner = getattr(hook, "__self__", None)
    named = hook if hasattr(hook, "__qualname__") and owner is None else type(owner if owner is not None else hook)
    return str(getattr(named, "__module__", "") or "")
