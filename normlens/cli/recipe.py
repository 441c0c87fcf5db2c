"""How one variant is trained: its model, its optimizer with what hangs on it, its schedule and its batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from normlens.catalog import load, names, nearest
from normlens.cli.errors import UsageError
from normlens.cli.variant import Variant
from normlens.data.amplitude_phase import APRPair, APRSingle
from normlens.nn.parametrize.apply import apply_to_weights
from normlens.optim.legw import legw
from normlens.optim.transform import Transform

__all__ = ["BASES", "Optimization", "augmentation", "check_names", "optimization", "reparametrized", "transforms"]

Augmentation: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]"

BASES = ("sgd", "adamw")
SCHEDULES = ("constant", "legw")
AUGMENTATIONS = {"apr_pair": APRPair, "apr_single": APRSingle}
_BASE_BATCH, _WARMUP_EPOCHS = 64, 0.5


@dataclass(frozen=True)
class Optimization:
    """An optimizer, the transforms that hang on it, and the schedule that follows each of its steps."""

    optimizer: torch.optim.Optimizer
    transforms: list[Transform]
    schedule: LRScheduler | None

    def describe(self) -> str:
        """Say what it is, as the run's file holds it."""
        group = self.optimizer.param_groups[0]
        momentum = f", momentum={group['momentum']}" if "momentum" in group else ""
        rate = group.get("initial_lr", group["lr"])
        named = [
            f"{type(self.optimizer).__name__}(lr={rate:g}{momentum})",
            *(type(t).__name__ for t in self.transforms),
        ]
        return " + ".join(named)


def transforms() -> list[str]:
    """List the transforms that are made from a model and an optimizer alone."""
    return [name for name in names("normlens.optim") if _is_transform(load("normlens.optim", name))]


def check_names(variant: Variant) -> None:
    """Refuse a name that nothing answers to.

    Raises:
        UsageError: there is one.
    """
    known = {
        "optimizer": [*BASES, *transforms()],
        "weights": ["none", *names("normlens.nn.parametrize")],
        "schedule": list(SCHEDULES),
        "augment": ["none", *AUGMENTATIONS],
    }
    given = {"optimizer": variant.optimizer.split("+"), "weights": [variant.weights]}
    given |= {"schedule": [variant.schedule], "augment": [variant.augment]}
    for option, parts in given.items():
        for part in parts:
            if part not in known[option]:
                raise UsageError(nearest(part, known[option], what=f"--{option}"))
    if len(set(BASES) & set(given["optimizer"])) > 1:
        raise UsageError(f"--optimizer {variant.optimizer} names two optimizers: give one of {', '.join(BASES)}")


def reparametrized(model: nn.Module, weights: str) -> nn.Module:
    """Put a reparametrization on the weights of a model; ``"none"`` leaves it as it is."""
    if weights != "none":
        apply_to_weights(model, load("normlens.nn.parametrize", weights))
    return model


def optimization(model: nn.Module, variant: Variant, *, lr: float, batch_size: int, dataset_size: int) -> Optimization:
    """Make the optimizer of a variant and what hangs on it.

    Args:
        model: what is trained.
        variant: says which.
        lr: the learning rate, for LEGW that of batches of 64.
        batch_size: samples in a batch.
        dataset_size: samples in an epoch.

    Raises:
        ValueError: a transform that cannot treat this model.
    """
    parts = variant.optimizer.split("+")
    if "adamw" in parts:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    hung = [load("normlens.optim", name)(model, optimizer) for name in parts if name not in BASES]
    schedule = None
    if variant.schedule == "legw":
        schedule = legw(
            optimizer, base_batch_size=_BASE_BATCH, batch_size=batch_size, base_warmup_epochs=_WARMUP_EPOCHS,
            dataset_size=dataset_size,
        )  # fmt: skip
    return Optimization(optimizer, hung, schedule)


def augmentation(name: str, seed: int) -> Augmentation:
    """Return what is done to each batch; its draws come from the seed."""
    if name == "none":
        return lambda x, y: (x, y)
    made: Augmentation = AUGMENTATIONS[name](generator=torch.Generator().manual_seed(seed))
    return made


def _is_transform(entry: object) -> bool:
    if not (inspect.isclass(entry) and issubclass(entry, Transform) and entry is not Transform):
        return False
    needed = [p for p in inspect.signature(entry).parameters.values() if p.default is p.empty]
    return [p.name for p in needed] == ["model", "optimizer"]
