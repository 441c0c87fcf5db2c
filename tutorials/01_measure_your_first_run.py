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
# # Measure your first run
#
# You have a training loop. This tutorial puts a lens on it in three lines, reads what it saw, and checks
# two promises: the training is the same to the last bit, and the cost is what the lens says it is.

# %%
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

import normlens as nl

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests run a shorter training
EPOCHS = 3 if FAST else 12
FOLDER = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A plain PyTorch loop
#
# Real handwritten digits, a small convolutional network of plain `torch.nn` modules with batch norm, SGD.
# Nothing here knows of normlens but the data set.

# %%
digits = nl.data.digits()
x_test, y_test = digits.test


def make_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        result = (model(x_test).argmax(1) == y_test).float().mean().item()
    model.train()
    return result


loss_function = nn.CrossEntropyLoss()

# %% [markdown]
# ## The same loop with a lens on
#
# Three lines: open the lens, tell it after every optimizer step, leave the block. The probe batch is fixed, so that
# what moves is the network and not the sample.

# %%
model = make_network(seed=0)
optimizer = make_optimizer(model)
probes = [nl.probes.TrainingCurve(), nl.probes.ActivationDrift(), nl.probes.Elimination()]
probe_batch = (digits.train[0][:256], digits.train[1][:256])

with nl.Lens(model, loss_function, data=probe_batch, probes=probes, out=FOLDER / "first", every=20,
             optimizer=optimizer, min_runs=2) as lens:  # fmt: skip
    for _ in range(EPOCHS):
        for x, y in digits.loader(64, seed=0):
            loss = loss_function(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lens.step(loss=loss)
    lens.log("test_accuracy", accuracy(model), n=len(y_test))

# %% [markdown]
# ## Is the run healthy?
#
# In a notebook, the run alone in a cell shows the verdict, the table and the overview.

# %%
run = nl.open_run(FOLDER / "first")
run

# %% [markdown]
# The findings in words, worst first; an empty list means that no rule found anything.

# %%
findings = nl.diagnose(run)
findings

# %% [markdown]
# ## Do the layers' inputs drift?
#
# Rows are layers from input to output, columns are steps. The color is the shift of a channel's mean since the first
# measurement in units of its null floor: what a fresh batch of this size would show if nothing had moved. What is
# not above the floor is not drift.

# %%
axes = nl.plot.activation_drift(run)

# %% [markdown]
# ## How far are the channels from falling out of the network?
#
# The offset of a channel is the mean of what enters its ReLU, divided by its standard deviation. Far to the left, the
# ReLU is closed for every sample, and no gradient opens it again.

# %%
axes = nl.plot.elimination(run)

# %% [markdown]
# ## Read the frame
#
# Every figure is drawn from a tidy table: step, layer, unit (the channel), name, value, error, units, n, mode.

# %%
frame = run.frame("elimination")
last = frame[(frame["step"] == frame["step"].max()) & frame["unit"].isna()]
table = last.pivot_table(index="layer", columns="name", values="value")
table[["channels", "dead", "near_dead", "margin"]].dropna()

# %% [markdown]
# Batch norm promises that the offset is exactly its own $\beta/|\gamma|$, whatever the data are. Compare what was
# measured after the first batch norm with its parameters:

# %%
offsets = run.array("elimination", "offset", layer="2", step=lens.index).values
promised = (model[1].bias / model[1].weight.abs()).detach().numpy()
print(f"largest difference between measured offset and beta/|gamma|: {abs(offsets - promised).max():.1e}")
assert abs(offsets - promised).max() < 1e-3  # eps = 1e-5 under the root makes it not quite exact

# %% [markdown]
# ## What did it cost?

# %%
cost = {reading.name: reading.value for reading in run.readings("lens", lens.index)}
print(f"{cost['lens_seconds']:.2f} s of measuring on top of {cost['bare_seconds']:.2f} s of training")
print(f"{len(run.measurements)} measurements; {run.path.stat().st_size / 1024:.0f} kB on disk")

# %% [markdown]
# On a network that trains in a second, measuring costs as much as training. `budget=0.10` would hold it to a tenth
# of the training's time, and each probe would be measured as often as that allows.
#
# ## Did the lens change the training?
#
# The same seed without a lens, and the weights are compared bit by bit.

# %%
bare = make_network(seed=0)
bare_optimizer = make_optimizer(bare)
for _ in range(EPOCHS):
    for x, y in digits.loader(64, seed=0):
        loss = loss_function(bare(x), y)
        bare_optimizer.zero_grad()
        loss.backward()
        bare_optimizer.step()

same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), bare.state_dict().values(), strict=True))
print(f"weights, running statistics and counters identical: {same}")
print(f"test accuracy {accuracy(model):.1%} with the lens, {accuracy(bare):.1%} without")
assert same

# %% [markdown]
# ## Share it
#
# One page, one file, nothing loaded from elsewhere:

# %%
page = nl.write_report(run, FOLDER / "report.html")
print(f"{page.name}: {page.stat().st_size / 1024:.0f} kB")
assert page.exists()
