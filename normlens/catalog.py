"""The names a person may type: the modules of a package, found by walking it without importing them.

A module is listed under its own file name and stands for the first name in its ``__all__``, when that name is the
file's own, up to case and underscores (``rms_norm`` -> ``RMSNorm``). So there is no registry to keep, and
``normlens list`` needs no torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["UnknownNameError", "load", "names", "nearest", "summaries"]


class UnknownNameError(ValueError):
    """A name that no module of the package answers to."""


def names(package: str) -> list[str]:
    """List the modules of ``package`` that define a public object named after their concept, sorted."""
    return sorted(_entries(package))


def summaries(package: str) -> dict[str, str]:
    """Map each name of ``package`` to the first line of its module's docstring."""
    return {name: summary for name, (_, summary) in sorted(_entries(package).items())}


def load(package: str, name: str) -> Any:
    """Import the object that ``name`` stands for in ``package``.

    Args:
        package: a dotted package, e.g. ``"normlens.nn"``.
        name: one of :func:`names`.

    Raises:
        UnknownNameError: no such module; the message names the nearest ones.
    """
    entries = _entries(package)
    if name not in entries:
        raise UnknownNameError(nearest(name, sorted(entries), what=package.rpartition(".")[2]))
    return getattr(importlib.import_module(f"{package}.{name}"), entries[name][0])


def nearest(name: str, known: list[str], *, what: str) -> str:
    """Say that ``name`` is unknown, which names are near and where the list is."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}."
    return f"unknown name {name!r} in {what}: {hint}"


@cache
def _entries(package: str) -> dict[str, tuple[str, str]]:
    """Map file name -> (first public name, first docstring line), for files whose first public name is an entry.

    Read once a process, as imports are: a report asks some two hundred times.
    """
    root = Path(__file__).parent.joinpath(*package.split(".")[1:])
    found = {}
    for path in root.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        first = _first_public_name(tree)
        if not path.name.startswith("_") and first and _is_entry(first, path.stem):
            found[path.stem] = (first, (ast.get_docstring(tree) or "").partition("\n")[0])
    return found


def _first_public_name(tree: ast.Module) -> str | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            listed = ast.literal_eval(node.value)
            return str(listed[0]) if listed else None
    return None


def _is_entry(public: str, module: str) -> bool:
    """A module is an entry when its first public name is its file name, up to case and underscores."""
    return public.replace("_", "").lower() == module.replace("_", "").lower()
