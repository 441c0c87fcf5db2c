"""The attributes of a module tree, kept safe while our own code runs it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["preserved_attributes"]


@contextmanager
def preserved_attributes(model: torch.nn.Module) -> Iterator[None]:
    """Put every attribute of every submodule back as it was: modes, hooks, counters, computed weights.

    A forward pass may rebind attributes (legacy ``weight_norm`` sets ``module.weight``, a counter counts) and may
    change containers in place (a list that collects outputs). Both are undone, the containers one level deep. What
    did not change is not touched, so that guards of a compiled model see the very objects they saw before. Random
    generators that modules hold (layers that draw noise) go on where they were. The contents of tensors are not this
    function's business.
    """
    saved = [(vars(module), _snapshot(vars(module))) for module in model.modules()]
    generators = {id(v): v for live, _ in saved for v in live.values() if isinstance(v, torch.Generator)}
    states = {key: generator.get_state() for key, generator in generators.items()}
    try:
        yield
    finally:
        for key, generator in generators.items():
            generator.set_state(states[key])
        for live, attributes in saved:
            _restore(live, attributes)


def _snapshot(attributes: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List (name, object, copy of its items) of every attribute; the copy is None for what is no container."""
    return [
        (name, value, value.copy() if isinstance(value, dict | list | set) else None)
        for name, value in attributes.items()
    ]


def _restore(live: dict[str, Any], saved: list[tuple[str, Any, Any]]) -> None:
    for name in live.keys() - {name for name, _, _ in saved}:
        del live[name]
    for name, value, items in saved:
        if name not in live or live[name] is not value:
            live[name] = value
        if items is not None and not _same_items(value, items):
            value.clear()
            value.extend(items) if isinstance(value, list) else value.update(items)


def _same_items(now: Any, before: Any) -> bool:
    """Compare by identity: comparing values would call the user's ``__eq__``, and tensors have no truth value."""
    if len(now) != len(before):
        return False
    if isinstance(now, set):
        return {id(item) for item in now} == {id(item) for item in before}
    same_keys = not isinstance(now, dict) or all(map(operator.is_, now, before))
    values = (now.values(), before.values()) if isinstance(now, dict) else (now, before)
    return same_keys and all(map(operator.is_, *values))
