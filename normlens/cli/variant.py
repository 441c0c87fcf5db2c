"""Variant: one of the trainings that a command line asks for, and what to call it."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from itertools import product

from normlens.cli.errors import UsageError

__all__ = ["Variant", "split_names", "variants"]


@dataclass(frozen=True)
class Variant:
    """What may differ from one training to the next.

    Attributes:
        norm: a layer's name, or ``"none"``.
        optimizer: ``"sgd"`` or ``"adamw"``, the name of a transform of SGD, or all of them joined by ``+``.
        weights: a reparametrization's name, or ``"none"``.
        schedule: a learning rate schedule's name, or ``"constant"``.
        augment: an augmentation's name, or ``"none"``.
        seed: decides weights and batches.
    """

    norm: str
    optimizer: str
    weights: str
    schedule: str
    augment: str
    seed: int

    @property
    def file(self) -> str:
        """The name of its file: the norm, whatever is not as it is by default, and the seed."""
        unusual = [value for key, value in self._settings() if value != _DEFAULTS[key]]
        return "-".join([self.norm, *unusual, f"seed{self.seed}"])

    def label(self, varying: set[str]) -> str:
        """Say what sets it apart: the norm, and what else varies.

        Args:
            varying: the names of the attributes that differ among the trainings.
        """
        others = [value for key, value in self._settings() if key in varying]
        return ", ".join([self.norm, *others] + ([f"seed {self.seed}"] if "seed" in varying else []))

    def _settings(self) -> list[tuple[str, str]]:
        return [(key, value) for key, value in asdict(self).items() if key in _DEFAULTS]


_DEFAULTS = {"optimizer": "sgd", "weights": "none", "schedule": "constant", "augment": "none"}


def variants(options: argparse.Namespace) -> tuple[list[Variant], set[str]]:
    """List every combination that the options name, in their order, and the attributes that vary.

    Raises:
        UsageError: an option names nothing, or the same twice, or a seed is no integer.
    """
    named = {key: split_names(getattr(options, key), key) for key in ("norm", *_DEFAULTS)}
    try:
        seeds = [int(seed) for seed in split_names(options.seeds, "seeds")]
    except ValueError as error:
        raise UsageError(f"--seeds must be integers, separated by commas; got {options.seeds!r}") from error
    combinations = product(*named.values())
    found = [Variant(n, o, w, s, a, seed) for n, o, w, s, a in combinations for seed in seeds]
    varying = {f.name for f in fields(Variant) if len({getattr(v, f.name) for v in found}) > 1}
    return found, varying


def split_names(text: str, what: str) -> list[str]:
    """Split at commas.

    Raises:
        UsageError: nothing is left, or a name stands twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--{what} needs one or more different names, separated by commas; got {text!r}")
    return names
