"""Experiment: one model on one data set, trained with a lens on for each variant that was asked for."""

from __future__ import annotations

import argparse
import inspect
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from normlens.catalog import UnknownNameError, load, names, nearest
from normlens.cli.errors import UnsupportedError, UsageError
from normlens.cli.recipe import Optimization, augmentation, check_names, optimization, reparametrized
from normlens.cli.schedule import at_the_ends, scheduled
from normlens.cli.variant import Variant, split_names, variants
from normlens.data.images import ImageData
from normlens.probes.edge_of_stability import EdgeOfStability
from normlens.random_state import preserved_random_state
from normlens.run.errors import RunExistsError
from normlens.run.lens import Lens
from normlens.run.probe import Probe
from normlens.run.writer import run_path

__all__ = ["Experiment", "plan"]

_MEASUREMENTS = 40


@dataclass(frozen=True)
class Experiment:
    """What ``normlens run`` does, with all names resolved.

    Attributes:
        options: the command line.
        data: the data set.
        model: the model's class.
        variants: the trainings, one run each.
        varying: what differs among them, by the names of :class:`~normlens.cli.variant.Variant`.
        probes: what to measure.
    """

    options: argparse.Namespace
    data: ImageData
    model: type[nn.Module]
    variants: list[Variant]
    varying: set[str]
    probes: list[Probe]

    def describe(self) -> str:
        """Say what will be run, in four lines."""
        o = self.options
        shape = "x".join(map(str, self.data.shape))
        budget = "no limit" if o.budget is None else f"{o.budget:.0%} of the training time"
        size = sum(p.numel() for p in self._build(self.variants[0]).parameters())
        rare = [type(p).__name__ for p in self.probes if at_the_ends(p)]
        every = f"{self._every} steps" + f", {', '.join(rare)} at the ends alone" * bool(rare)
        return (
            f"data    {self.data.name}: {len(self.data.train[0])} train, {len(self.data.test[0])} test, {shape}\n"
            f"model   {o.model}: {size} parameters; {o.optimizer}, lr {o.lr}, batch {o.batch_size}, {o.epochs} epochs\n"
            f"runs    {'; '.join(variant.label(self.varying) for variant in self.variants)}\n"
            f"probes  {', '.join(type(p).__name__ for p in self.probes)}; every {every}; budget {budget}"
        )

    def prepare(self) -> None:
        """Try every model, and make room for the runs, before the first one is trained.

        Raises:
            RunExistsError: runs of the same name are there, and ``--overwrite`` was not given.
            UnsupportedError: a model cannot be built, or cannot be run.
        """
        files = [self._file(variant) for variant in self.variants]
        if not self.options.overwrite and (there := [file for file in files if file.exists()]):
            raise RunExistsError(f"{there[0]} is there already; pass --overwrite to replace it, or another --out")
        for variant in self.variants:
            self._try(variant)
        for file in files:
            for leftover in (file, file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")):
                leftover.unlink(missing_ok=True)

    def _file(self, variant: Variant) -> Path:
        return run_path(self.options.out / variant.file)

    def train(self, variant: Variant) -> Path:
        """Train one model with a lens on and return the file of its run; what draws globally draws from its seed."""
        with preserved_random_state(variant.seed):
            return self._train(variant)

    def _train(self, variant: Variant) -> Path:
        out, name = self._file(variant), variant.label(self.varying)
        model = self._build(variant).to(self.options.device)
        optimization = self._optimization(model, variant)
        settings: dict[str, Any] = {"every": self._every, "budget": self.options.budget, "min_runs": 2}
        with Lens(
            model, nn.functional.cross_entropy, self._probe_batch(), probes=self._probes(optimization), out=out,
            name=name, optimizer=optimization.optimizer, config=self._config(variant, optimization), seed=variant.seed,
            **settings,
        ) as lens:  # fmt: skip
            self._loop(model, optimization, lens, variant, name)
        return out

    def _probes(self, optimization: Optimization) -> list[Probe]:
        """Leave out, unless it was asked for, what has no answer where transforms change the step."""
        unknown = bool(optimization.transforms) and not self.options.probes
        return [probe for probe in self.probes if not (unknown and isinstance(probe, EdgeOfStability))]

    def _loop(self, model: nn.Module, how: Optimization, lens: Lens, variant: Variant, name: str) -> None:
        o = self.options
        loader, augment = self.data.loader(o.batch_size, seed=variant.seed), augmentation(variant.augment, variant.seed)
        hidden = True if o.quiet or o.json else None  # None: shown on a terminal, not in a log file
        with tqdm(total=o.epochs * len(loader), desc=name, disable=hidden, file=sys.stderr, unit="step") as bar:
            for epoch in range(1, o.epochs + 1):
                for batch in loader:
                    loss = self._step(model, how, augment(*batch))
                    lens.step(loss=loss, batch=batch)
                    bar.update()
                accuracy, n = self._test(model)
                lens.log("test_accuracy", accuracy, error=math.sqrt(accuracy * (1 - accuracy) / n), n=n)
                lens.log("epoch", epoch)
                bar.set_postfix_str(f"loss {loss.item():.3f}, test {accuracy:.1%}, lens +{lens.overhead:.0%}")

    def _step(self, model: nn.Module, how: Optimization, batch: tuple[Tensor, Tensor]) -> Tensor:
        device = next(model.parameters()).device
        x, y = (part.to(device) for part in batch)
        loss = nn.functional.cross_entropy(model(x), y)
        how.optimizer.zero_grad()
        torch.autograd.backward(loss)
        how.optimizer.step()
        if how.schedule is not None:
            how.schedule.step()
        return loss

    def _test(self, model: nn.Module) -> tuple[float, int]:
        """Return the accuracy on the test part in eval mode, and its size."""
        x, y = (part.to(self.options.device) for part in self.data.test)
        model.eval()
        with torch.no_grad():
            right = 0
            for images, labels in zip(torch.split(x, 512), torch.split(y, 512), strict=True):
                right += int((model(images).argmax(1) == labels).sum())
        model.train()
        return right / len(y), len(y)

    def _probe_batch(self) -> tuple[Tensor, Tensor]:
        """Draw fixed training samples, the same for every norm and seed."""
        x, y = self.data.train
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: self.options.probe_samples]
        return x[chosen], y[chosen]

    @property
    def _every(self) -> int:
        steps = self.options.epochs * math.ceil(len(self.data.train[0]) / self.options.batch_size)
        return int(self.options.every or max(1, steps // _MEASUREMENTS))

    def _build(self, variant: Variant) -> nn.Module:
        norm = None if variant.norm == "none" else variant.norm
        arguments = (self.data.shape, len(self.data.classes))
        model = self.model(*arguments, norm=norm, placement=self.options.placement, seed=variant.seed)
        return reparametrized(model, variant.weights)

    def _optimization(self, model: nn.Module, variant: Variant) -> Optimization:
        sizes = {"batch_size": self.options.batch_size, "dataset_size": len(self.data.train[0])}
        return optimization(model, variant, lr=self.options.lr, **sizes)

    def _try(self, variant: Variant) -> None:
        """Build a model and take a step with it, on as many samples as the smallest batch of the training will have.

        Raises:
            UnsupportedError: it cannot be built for this data, or cannot be run.
        """
        images, labels = self.data.train
        smallest = len(images) % self.options.batch_size or self.options.batch_size
        try:
            with preserved_random_state():
                trial = self._build(variant)
                self._step(trial, self._optimization(trial, variant), (images[:smallest], labels[:smallest]))
        except (ValueError, TypeError, RuntimeError) as error:
            what = f"model {self.options.model} with norm {variant.label(self.varying)}"
            raise UnsupportedError(f"{what}: {error}") from error

    def _config(self, variant: Variant, optimization: Optimization) -> dict[str, Any]:
        o = self.options
        return {
            "data": self.data.name, "model": o.model, "norm": variant.norm, "placement": o.placement,
            "optimizer": optimization.describe(), "weights": variant.weights, "schedule": variant.schedule,
            "augment": variant.augment, "epochs": o.epochs, "batch_size": o.batch_size, "device": o.device,
            "probe_samples": min(o.probe_samples, len(self.data.train[0])),
        }  # fmt: skip


def plan(options: argparse.Namespace) -> Experiment:
    """Resolve every name of the command line before anything is trained.

    Raises:
        UnknownNameError: a name that nothing answers to.
        UsageError: a value out of its range, or a device that is not there.
    """
    asked, varying = variants(options)
    model = load("normlens.models", options.model)
    norms = ["none", *getattr(model, "own_norms", ()), *names("normlens.nn")]
    for variant in asked:
        if variant.norm not in norms:
            raise UnknownNameError(nearest(variant.norm, norms, what="--norm"))
        check_names(variant)
    chosen = split_names(options.probes, "probes") if options.probes else names("normlens.probes")
    probes = [load("normlens.probes", name)() for name in chosen]
    _check_device(options.device)
    data = _load_data(options)
    last = options.epochs * math.ceil(len(data.train[0]) / options.batch_size)
    return Experiment(options, data, model, asked, varying, [scheduled(probe, last) for probe in probes])


def _load_data(options: argparse.Namespace) -> ImageData:
    function = load("normlens.data", options.data)
    takes_folder = "data_dir" in inspect.signature(function).parameters
    if takes_folder and options.data_dir is None:
        raise UsageError(f"--data {options.data} is read from files: say where they are with --data-dir")
    data: ImageData = function(options.data_dir) if takes_folder else function()
    return data


def _check_device(device: str) -> None:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise UsageError(f"--device {device}: torch sees no such device here; it sees {[d for d in there if there[d]]}")
