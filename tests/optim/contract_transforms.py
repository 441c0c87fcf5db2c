"""What every transform of ``normlens.optim`` keeps, found by walking the package: a new file joins by being there."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from normlens import catalog
from normlens.cli.recipe import transforms
from normlens.probes import ActivationDrift, HessianSpectrum, TrainingCurve
from normlens.run.lens import Lens
from support.fingerprint import digest

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
}
X = torch.randn(800, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(800) % 3
loss_of = nn.CrossEntropyLoss()

every_transform = pytest.mark.parametrize("name", transforms())
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


class Training:
    """A network with what every transform can treat: biases everywhere, a batch norm, ReLUs."""

    def __init__(self, name: str | None, optimizer: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
            self.model = nn.Sequential(*layers)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.transform = None if name is None else catalog.load("normlens.optim", name)(self.model, self.optimizer)

    def step(self, number: int) -> None:
        rows = slice(200 * (number % 4), 200 * (number % 4) + 200)
        self.optimizer.zero_grad()
        loss_of(self.model(X[rows]), Y[rows]).backward()
        self.optimizer.step()

    def run(self, first: int, last: int) -> Training:
        for number in range(first, last):
            self.step(number)
        return self

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "transform": None if self.transform is None else self.transform.state_dict(),
        }

    def load(self, state: dict[str, object]) -> Training:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.transform.load_state_dict(state["transform"])
        return self


@every_transform
@every_optimizer
def test_a_training_saved_and_resumed_goes_on_bit_by_bit(name, optimizer):
    whole, file = Training(name, optimizer).run(0, 14), io.BytesIO()
    torch.save(Training(name, optimizer).run(0, 7).state(), file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = Training(name, optimizer).load(saved).run(7, 14)
    assert digest(resumed.state()) == digest(whole.state())


@every_transform
def test_taken_off_it_leaves_the_plain_optimizer(name):
    used, plain = Training(name, "SGD").run(0, 3), Training(None, "SGD")
    used.transform.remove()
    plain.model.load_state_dict(used.model.state_dict())
    for training in (used, plain):
        training.run(3, 6)
    assert digest(used.model.state_dict()) == digest(plain.model.state_dict())
    hooks = [used.model._forward_hooks, used.model._forward_pre_hooks]
    hooks += [h for m in used.model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    assert not any(hooks)


@every_transform
def test_a_lens_changes_no_bit_of_a_training_with_it(name, tmp_path):
    bare, watched = Training(name, "momentum").run(0, 10), Training(name, "momentum")
    probes = [TrainingCurve(), ActivationDrift(), HessianSpectrum(k=1)]
    with Lens(watched.model, loss_of, (X, Y), probes=probes, out=tmp_path / "run", optimizer=watched.optimizer) as lens:
        for number in range(10):
            watched.step(number)
            lens.step()
    assert digest(watched.state()) == digest(bare.state())


@every_transform
def test_it_does_something_and_says_how(name):
    changed, plain = Training(name, "SGD").run(0, 7), Training(None, "SGD").run(0, 7)
    assert digest(changed.model.state_dict()) != digest(plain.model.state_dict())
    doc = type(changed.transform).__doc__
    assert "Source:" in doc
    assert ".. math::" in doc
