# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Diagnose a sick run
#
# A network trains as it should, and fails in use. We have no idea why, and do not look into the code that made it: only
# at what a lens has written down. `diagnose` reads that file and says in words what is wrong, where, since when, how
# sure it is and what to do. Then we do what it says. At the end, four more patients, blind.

# %%
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normlens as nl
from normlens.inference.calibration import calibrate_batchnorm

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests: a shorter training
STEPS = 150 if FAST else 300

digits = nl.data.digits()
images, labels = digits.test
folder = Path(tempfile.mkdtemp())


class Patient(NamedTuple):
    model: nn.Module
    run: nl.Run
    accuracy: float


def treat(name: str, model: nn.Module, lr: float = 0.05, batch_size: int = 64) -> Patient:
    """Train under a lens; the accuracy is that of use, in eval mode on images that were not seen."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    probes = [
        nl.probes.TrainingCurve(), nl.probes.BatchNoise(), nl.probes.GradientFlow(), nl.probes.Saturation(),
        nl.probes.EdgeOfStability(tol=1e-2),
    ]  # fmt: skip
    fixed, loader = (digits.train[0][:256], digits.train[1][:256]), digits.loader(batch_size, seed=0)
    with nl.Lens(
        model, cross_entropy, fixed, probes=probes, out=folder / name, every=STEPS // 3, optimizer=optimizer, name=name
    ) as lens:
        while lens.index < STEPS:
            for x, y in loader:
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                lens.step(loss=loss, batch=(x, y))
                if lens.index == STEPS:
                    break
    return Patient(model, nl.open_run(folder / name), accuracy(model))


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return float((model.eval()(images).argmax(1) == labels).double().mean())


# %% [markdown]
# ## The complaint
#
# This is how the patient came to be; pretend that you have not seen the line that makes it sick.

# %%
model = nl.models.MLP(digits.shape, 10, norm=lambda features: nl.nn.BatchNorm(features, momentum=1e-4))
patient = treat("the patient", model)
curve = patient.run.frame("training_curve")
losses = curve.loc[curve["name"] == "loss", "value"]
print("loss:", ", ".join(f"{loss:.3f}" for loss in losses))
print(f"test accuracy: {patient.accuracy:.3f}")
assert losses.iloc[-1] < 0.1 * losses.iloc[0]
assert patient.accuracy < 0.9

# %% [markdown]
# The loss is near zero, and the accuracy is not that of a network whose loss is near zero. Overfitting? A bug in the
# evaluation? Ask the file.

# %%
findings = nl.diagnose(patient.run)
findings

# %%
first = findings[0]
print(first)
print(first.numbers)
assert (first.severity, first.rule) == ("sick", "stale_statistics")
assert first.layer.startswith("block")
assert first.evidence["loss_eval"] > 5 * first.evidence["loss_train"]

# %% [markdown]
# The worst comes first. It names the layers, and the cause: the running statistics, which batch norm uses in eval mode,
# are still those that it began with. It gives the evidence, the same probe batch with the batch's statistics and with
# the running ones, and it tells two ways out. The report shows the same on its first screen, with a link to the figure.

# %%
page = nl.write_report(patient.run, folder / "report.html").read_text(encoding="utf-8")
assert "running statistics are not those of the data" in page

# %% [markdown]
# ## The treatment
#
# For this network: take the statistics again, with no training at all. For the next one: batch norm's usual momentum.

# %%
repaired = accuracy(calibrate_batchnorm(patient.model, digits.train[0][:512]))
again = treat("momentum 0.1", nl.models.MLP(digits.shape, 10, norm="batch_norm"))
print(f"test accuracy: {patient.accuracy:.3f}, calibrated {repaired:.3f}, trained again {again.accuracy:.3f}")
print("findings:", nl.diagnose(again.run))
assert repaired > 0.95
assert again.accuracy > 0.95
assert not [finding for finding in nl.diagnose(again.run) if finding.severity == "sick"]

# %% [markdown]
# ## Four more, blind
#
# Each has one thing wrong. What is found, and what was done to it? What is printed in full is the finding that names
# it; what else is found follows from it.


# %%
def scaled(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for layer in list(model.modules()):
            if isinstance(layer, nn.Linear) and layer is not model.head:
                layer.weight.mul_(factor)
    return model


def network(norm: str | None = None, widths: tuple[int, ...] = (64, 64, 64)) -> nn.Module:
    return nl.models.MLP(digits.shape, 10, norm=norm, widths=widths)


def with_tanh(model: nn.Module) -> nn.Module:
    for block in model.children():
        if hasattr(block, "relu"):
            block.relu = nn.Tanh()
    return model


WARDS: dict[str, tuple[Callable[[], Patient], str]] = {
    "A": (lambda: treat("A", network("batch_norm"), lr=5e-5), "rate_too_low"),
    "B": (lambda: treat("B", scaled(network(), 0.1)), "gradients_at_init"),
    "C": (lambda: treat("C", scaled(with_tanh(network()), 8.0), lr=0.01), "saturated"),
    "D": (lambda: treat("D", network("batch_norm"), lr=0.01, batch_size=4), "tiny_batches"),
}

for name, (make, planted) in WARDS.items():
    patient = make()
    found = nl.diagnose(patient.run)
    print(f"{name}, test accuracy {patient.accuracy:.2f}: {', '.join(dict.fromkeys(f.rule for f in found))}")
    print(next(finding for finding in found if finding.rule == planted), "\n")

# %% [markdown]
# A learning rate a thousand times too low; weights a tenth of what they should be; tanh units with weights eight times
# too large; batch norm on four images at a time. No rule has seen a model: they read numbers from a file, compare them
# with thresholds that are derived or were set on healthy runs, and say so. `benchmarks/fault_zoo.py` counts how often
# they are right, on networks that they were made with and on others.
