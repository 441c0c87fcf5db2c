"""Experiment: one model on one data set, trained with a lens on for each norm and seed."""

from __future__ import annotations

import argparse
import inspect
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from normlens.catalog import load, names
from normlens.cli.errors import UnsupportedError, UsageError
from normlens.cli.train import split_names
from normlens.data.images import ImageData
from normlens.probes.hessian_spectrum import HessianSpectrum
from normlens.probes.loss_surface import LossSurface
from normlens.run.errors import RunExistsError
from normlens.run.lens import Lens
from normlens.run.probe import Probe
from normlens.run.schedule import at
from normlens.run.writer import run_path

__all__ = ["Experiment", "plan"]

_PROBE_SAMPLES = 256
_MEASUREMENTS = 40
_DENSITY_PROBES = 3


@dataclass(frozen=True)
class Experiment:
    """What ``normlens run`` does, with all names resolved.

    Attributes:
        options: the command line.
        data: the data set.
        model: the model's class.
        norms: layer names, None for no normalization.
        seeds: one run for each, per norm.
        probes: what to measure.
    """

    options: argparse.Namespace
    data: ImageData
    model: type[nn.Module]
    norms: list[str | None]
    seeds: list[int]
    probes: list[Probe]

    def describe(self) -> str:
        """Say what will be run, in four lines."""
        o = self.options
        shape = "x".join(map(str, self.data.shape))
        budget = "no limit" if o.budget is None else f"{o.budget:.0%} of the training time"
        size = sum(p.numel() for p in self._build(self.norms[0], self.seeds[0]).parameters())
        late = any(isinstance(p, LossSurface | HessianSpectrum) for p in self.probes)
        every = f"{self._every} steps" + ", surface and density after the last" * late
        return (
            f"data    {self.data.name}: {len(self.data.train[0])} train, {len(self.data.test[0])} test, {shape}\n"
            f"model   {o.model}: {size} parameters; {o.optimizer}, lr {o.lr}, batch {o.batch_size}, {o.epochs} epochs\n"
            f"norms   {', '.join(n or 'none' for n in self.norms)}; seeds {', '.join(map(str, self.seeds))}\n"
            f"probes  {', '.join(type(p).__name__ for p in self.probes)}; every {every}; budget {budget}"
        )

    def prepare(self) -> None:
        """Try every model, and make room for the runs, before the first one is trained.

        Raises:
            RunExistsError: runs of the same name are there, and ``--overwrite`` was not given.
            UnsupportedError: a model cannot be built, or cannot be run.
        """
        files = [self._file(norm, seed) for norm in self.norms for seed in self.seeds]
        if not self.options.overwrite and (there := [file for file in files if file.exists()]):
            raise RunExistsError(f"{there[0]} is there already; pass --overwrite to replace it, or another --out")
        for norm in self.norms:
            self._build(norm, self.seeds[0])
        for file in files:
            for leftover in (file, file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")):
                leftover.unlink(missing_ok=True)

    def _file(self, norm: str | None, seed: int) -> Path:
        return run_path(self.options.out / f"{norm or 'none'}-seed{seed}")

    def train(self, norm: str | None, seed: int) -> Path:
        """Train one model with a lens on and return the file of its run."""
        o = self.options
        out = self._file(norm, seed)
        model = self._build(norm, seed).to(o.device)
        optimizer = _optimizer(model, o)
        name = (norm or "none") + (f", seed {seed}" if len(self.seeds) > 1 else "")
        settings: dict[str, Any] = {"every": self._every, "budget": o.budget, "min_runs": 2, "seed": seed}
        with Lens(
            model, nn.functional.cross_entropy, self._probe_batch(), probes=self.probes, out=out, optimizer=optimizer,
            name=name, config=self._config(norm, optimizer), **settings,
        ) as lens:  # fmt: skip
            self._loop(model, optimizer, lens, name, seed)
        return out

    def _loop(self, model: nn.Module, optimizer: torch.optim.Optimizer, lens: Lens, name: str, seed: int) -> None:
        o = self.options
        loader = self.data.loader(o.batch_size, seed=seed)
        hidden = True if o.quiet or o.json else None  # None: shown on a terminal, not in a log file
        with tqdm(total=o.epochs * len(loader), desc=name, disable=hidden, file=sys.stderr, unit="step") as bar:
            for epoch in range(1, o.epochs + 1):
                for x, y in loader:
                    loss = nn.functional.cross_entropy(model(x.to(o.device)), y.to(o.device))
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    lens.step(loss=loss, batch=(x, y))
                    bar.update()
                accuracy, n = self._test(model)
                lens.log("test_accuracy", accuracy, error=math.sqrt(accuracy * (1 - accuracy) / n), n=n)
                lens.log("epoch", epoch)
                bar.set_postfix_str(f"loss {loss.item():.3f}, test {accuracy:.1%}, lens +{lens.overhead:.0%}")

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
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:_PROBE_SAMPLES]
        return x[chosen], y[chosen]

    @property
    def _every(self) -> int:
        steps = self.options.epochs * math.ceil(len(self.data.train[0]) / self.options.batch_size)
        return int(self.options.every or max(1, steps // _MEASUREMENTS))

    def _build(self, norm: str | None, seed: int) -> nn.Module:
        """Build the model and try it on as many samples as the smallest batch of the training will have.

        Raises:
            UnsupportedError: it cannot be built for this data, or cannot be run.
        """
        arguments = (self.data.shape, len(self.data.classes))
        images = self.data.train[0]
        smallest = len(images) % self.options.batch_size or self.options.batch_size
        try:
            with torch.no_grad():  # a copy is tried: the trial moves running statistics
                trial = self.model(*arguments, norm=norm, placement=self.options.placement, seed=seed)
                trial(images[:smallest])
            return self.model(*arguments, norm=norm, placement=self.options.placement, seed=seed)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UnsupportedError(f"model {self.options.model} with norm {norm or 'none'}: {error}") from error

    def _config(self, norm: str | None, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        o = self.options
        momentum = ", momentum=0.9" if o.optimizer == "sgd" else ""
        return {
            "data": self.data.name, "model": o.model, "norm": norm or "none", "placement": o.placement,
            "optimizer": f"{type(optimizer).__name__}(lr={o.lr}{momentum})", "epochs": o.epochs,
            "batch_size": o.batch_size, "device": o.device, "probe_samples": _PROBE_SAMPLES,
        }  # fmt: skip


def plan(options: argparse.Namespace) -> Experiment:
    """Resolve every name of the command line before anything is trained.

    Raises:
        UnknownNameError: a name that nothing answers to.
        UsageError: a value out of its range, or a device that is not there.
    """
    norms = [None if name == "none" else name for name in split_names(options.norm, "norm")]
    model = load("normlens.models", options.model)
    for norm in norms:
        if norm is not None and norm not in getattr(model, "own_norms", ()):
            load("normlens.nn", norm)
    try:
        seeds = [int(seed) for seed in split_names(options.seeds, "seeds")]
    except ValueError as error:
        raise UsageError(f"--seeds must be integers, separated by commas; got {options.seeds!r}") from error
    chosen = split_names(options.probes, "probes") if options.probes else names("normlens.probes")
    probes = [load("normlens.probes", name)() for name in chosen]
    _check_device(options.device)
    data = _load_data(options)
    last = options.epochs * math.ceil(len(data.train[0]) / options.batch_size)
    return Experiment(options, data, model, norms, seeds, [_costly_last(probe, last) for probe in probes])


def _costly_last(probe: Probe, last: int) -> Probe:
    """Measure surface and density, which cost more than the training between two measurements, after the last step."""
    if isinstance(probe, LossSurface):
        return replace(probe, when=at(last))
    if isinstance(probe, HessianSpectrum):
        return replace(probe, density_probes=_DENSITY_PROBES, density_when=at(last))
    return probe


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


def _optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    if options.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=options.lr)
    return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
