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
# # The edge of stability, and what a loss surface shows
#
# On a quadratic, gradient descent with learning rate $\eta$ is stable while the curvature stays below $2/\eta$. A
# network does not stay below: training drives the curvature there, and then stays (Cohen et al., ICLR 2021). This
# tutorial watches it with and without batch norm, under momentum and Adam. Then it looks at the loss around the place
# where training has arrived, and at the mistakes that such pictures invite.

# %%
import copy
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import normlens as nl
from normlens.curvature import eigsh, filter_normalized, from_vector, hessian, loss_line, trace

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests: fewer images, measurements and runs
EVERY = 4 if FAST else 2  # take every second image, to save time
MEASURE_EVERY = 150 if FAST else 50
FOLDER = Path(tempfile.mkdtemp())

# %% [markdown]
# ## All images in every step
#
# The theory is about full-batch training: no sampling noise, every step is the same function of the weights. The
# network: 64-32-32-10 with tanh, with batch norm or without, on real handwritten digits. The loss is the squared error,
# because under cross-entropy the curvature falls again once the images are fitted.

# %%
digits = nl.data.digits()
x, y = digits.train[0].flatten(1)[::EVERY], digits.train[1][::EVERY]


def make_network(*, norm: bool, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    make_norm = nn.BatchNorm1d if norm else lambda _: nn.Identity()
    return nn.Sequential(
        nn.Linear(64, 32), make_norm(32), nn.Tanh(),
        nn.Linear(32, 32), make_norm(32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * (outputs - nn.functional.one_hot(labels, 10)).square().sum(1).mean()


# %% [markdown]
# The threshold depends on the optimizer, so the lens is given it. `EdgeOfStability` measures the sharpness
# $\lambda_{max}$ of the Hessian, exactly through train-mode batch norm, and divides it by the threshold.


# %%
class Training(NamedTuple):
    model: nn.Sequential
    run: nl.Run
    losses: np.ndarray  # (steps,), the loss before each step

    def readings(self, name: str) -> np.ndarray:
        frame = self.run.frame("edge_of_stability")
        return frame.loc[frame["name"] == name, "value"].to_numpy(float)


def train(name: str, model: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int, *more: object) -> Training:
    losses = []
    with nl.Lens(model, squared_error, data=(x, y), probes=[nl.probes.EdgeOfStability(), *more], out=FOLDER / name,
                 every=MEASURE_EVERY, optimizer=optimizer, min_runs=1, on_error="raise") as lens:  # fmt: skip
        for _ in range(steps):
            loss = squared_error(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lens.step(loss=loss)
            losses.append(loss.item())
    return Training(model, nl.open_run(FOLDER / name), np.array(losses))


def name_of(norm: bool) -> str:
    return "batch norm" if norm else "no norm"


LONG, STEPS = (1500, 600) if FAST else (2000, 1000)  # the slowest run needs the time to climb
RATE = 0.2
descent: dict[str, Training] = {}
for norm, rate in ((False, RATE / 2), (False, RATE), (True, RATE), (True, 2 * RATE)):
    model = make_network(norm=norm)
    more = [nl.probes.HessianSpectrum(k=3)] if norm and rate == RATE else []
    name = f"{name_of(norm)}, rate {rate:g}"
    steps = LONG if rate < RATE else STEPS
    descent[name] = train(name, model, torch.optim.SGD(model.parameters(), lr=rate), steps, *more)

axes = nl.plot.edge_of_stability({name: training.run for name, training in descent.items()})

# %% [markdown]
# The line at 1 is the edge. A run that begins below climbs to it (progressive sharpening); a run that begins above is
# thrown to a flatter place by its first steps. Then both hover. The numbers, "late" for the last third of a run:


# %%
def late(values: np.ndarray) -> np.ndarray:
    return values[-len(values) // 3 :]


def report(trainings: dict[str, Training]) -> None:
    print(f"{'':23s}limit  sharpness: first, late  ratio, late   from   to   loss")
    for name, training in trainings.items():
        limit, sharpness, ratio = (training.readings(key) for key in ("threshold", "sharpness", "ratio"))
        last = late(ratio)
        print(f"{name:22s}{limit[0]:6.0f}  {sharpness[0]:16.1f}{late(sharpness).mean():6.0f}  {last.mean():11.2f}"
              f"   {last.min():.2f} {last.max():.2f}  {training.losses[-1]:.4f}")  # fmt: skip


def hovers(training: Training) -> bool:
    return 0.85 < late(training.readings("ratio")).mean() < 1.15


report(descent)
assert all(hovers(training) for training in descent.values())
slow, plain, normed, fast = descent.values()
assert slow.readings("ratio")[0] < 0.6  # it had to climb
assert fast.readings("ratio")[0] > 1.5  # it had to come down

# %% [markdown]
# Halve the learning rate, and the sharpness at which training lives doubles, with batch norm and without: the step size
# chooses the curvature. The loss goes on falling there, but no longer at every step. Count the steps that raised it:


# %%
def raised(losses: np.ndarray) -> float:
    return float((np.diff(losses) > 0).mean())


below = MEASURE_EVERY * (int(np.argmax(slow.readings("ratio") > 0.9)) - 1)
print(f"below the edge, the first {below} steps at rate {RATE / 2:g}: {raised(slow.losses[:below]):.0%}")
assert raised(slow.losses[:below]) < 0.01
for name, training in list(descent.items())[1:]:
    third = late(training.losses)
    begin, end = third[:50].mean(), third[-50:].mean()
    print(f"at the edge, {name}: {raised(third):.0%}, while the loss fell from {begin:.4f} to {end:.4f}")
    assert raised(third) > 0.2
    assert end < begin

# %% [markdown]
# `HessianSpectrum` sat on one of the runs, too. It draws random vectors of its own, so it is a check: both probes found
# the same $\lambda_{max}$, within the errors that they state.

# %%
axes = nl.plot.hessian_spectrum(normed.run)

# %%
spectrum, edge = normed.run.frame("hessian_spectrum"), normed.run.frame("edge_of_stability")
one, other = spectrum[spectrum["name"] == "lambda_max"], edge[edge["name"] == "sharpness"]
difference = np.abs(one["value"].to_numpy() - other["value"].to_numpy())
stated = one["error"].to_numpy() + other["error"].to_numpy()
print(f"largest difference {difference.max():.1e}, where the two errors add up to {stated[difference.argmax()]:.1e}")
assert (difference <= stated).all()

# %% [markdown]
# ## What does batch norm do to the sharpness?
#
# "It flattens the loss" is not what is seen here. In the beginning the network with batch norm is the sharper one. At
# the edge, with the same learning rate, both have the sharpness that this learning rate allows. What differs is the
# loss that they have reached there.

# %%
first = normed.readings("sharpness")[0] / plain.readings("sharpness")[0]
last = late(normed.readings("sharpness")).mean() / late(plain.readings("sharpness")).mean()
print(f"sharpness with batch norm over without: {first:.2f} before training, {last:.2f} at the edge")
print(f"loss without batch norm over with: {plain.losses[-1] / normed.losses[-1]:.1f} after {STEPS} steps")
assert first > 1.3
assert abs(last - 1) < 0.1
assert normed.losses[-1] < plain.losses[-1]

# %% [markdown]
# ## Momentum and Adam have other edges
#
# With Polyak momentum $\beta$ the limit is $(2+2\beta)/\eta$. Adam divides each coordinate by
# $\sqrt{\hat v}+\epsilon$: what counts is the sharpness after that division, a number in other units, and its limit is
# $(2+2\beta_1)/((1-\beta_1)\eta)$, which is $38/\eta$ for $\beta_1=0.9$.

# %%
BETA, MOMENTUM_RATE, ADAM_RATE = 0.5, 0.3, 0.01
others: dict[str, Training] = {}
for norm in (True,) if FAST else (False, True):
    model = make_network(norm=norm)
    momentum = torch.optim.SGD(model.parameters(), lr=MOMENTUM_RATE, momentum=BETA)
    others[f"momentum, {name_of(norm)}"] = train(f"momentum {norm}", model, momentum, STEPS)
    model = make_network(norm=norm)
    adam = torch.optim.Adam(model.parameters(), lr=ADAM_RATE)
    others[f"Adam, {name_of(norm)}"] = train(f"adam {norm}", model, adam, STEPS)
axes = nl.plot.edge_of_stability({name: training.run for name, training in others.items()})

# %%
report(others)
for name, training in others.items():
    assert hovers(training)
    if "momentum" in name:
        excess = late(training.readings("sharpness")).mean() / (2 / MOMENTUM_RATE)
        print(f"{name}: {excess:.2f} times the limit without momentum; 1 + beta = {1 + BETA}")
        assert 0.85 < excess / (1 + BETA) < 1.15
    else:
        assert np.allclose(training.readings("threshold"), 38 / ADAM_RATE)

# %% [markdown]
# Not every run hovers there. With $\beta=0.9$ the sharpness falls below the limit at first, and this small problem is
# fitted before it is back. The limit is what cannot be exceeded for long, not a place where training has to be:

# %%
model = make_network(norm=True)
heavy = train("heavy", model, torch.optim.SGD(model.parameters(), lr=MOMENTUM_RATE, momentum=0.9), STEPS)
report({"momentum 0.9": heavy})
assert late(heavy.readings("ratio")).max() < 1
assert heavy.losses[-1] < normed.losses[-1]

# %% [markdown]
# ## A line along the top eigenvector
#
# Where training has arrived, look around. `loss_line` walks along a direction through the weights. Along the top
# eigenvector the second difference of the loss must be the sharpness that Lanczos found from Hessian-vector products:
# one way knows no derivatives, the other no differences. In float64, and the error of a step $h$ is known from $2h$.

# %%
model = normed.model
risk = nl.EmpiricalRisk(model, squared_error, (x, y), mode="train").double()
H = hessian(risk)
top = eigsh(H, 2, tol=1e-8)
h = 0.005
line = loss_line(risk, from_vector(risk, top.vectors[:, 0]), steps=5, reach=2 * h).loss
fine, coarse = (line[1] - 2 * line[2] + line[3]) / h**2, (line[0] - 2 * line[2] + line[4]) / (2 * h) ** 2
error = abs(coarse - fine) / 3  # the leading term, h^2 L''''/12
print(f"second difference {fine:.6f} +- {error:.1e}")
print(f"eigenvalue        {float(top.values[0]):.6f} +- {float(top.residuals[0]):.1e}, {top.matvecs} products")
assert abs(fine - float(top.values[0])) < 2 * error + float(top.residuals[0])

# %% [markdown]
# ## Why the directions are normalized by filters
#
# Multiply the weights in front of a batch norm by four. The network computes the same function, but a step of a given
# length is now a quarter as large for it: its picture gets flatter, and nothing else has changed. A direction whose
# filters are as long as the network's own grows with them, and shows the same picture.

# %%
SCALE = 4.0
rescaled = copy.deepcopy(model)
with torch.no_grad():
    rescaled[0].weight.mul_(SCALE)
risk_rescaled = nl.EmpiricalRisk(rescaled, squared_error, (x, y), mode="train").double()
direction = filter_normalized(risk)
as_it_was = loss_line(risk, direction).loss
same_step = loss_line(risk_rescaled, direction).loss
normalized = loss_line(risk_rescaled, filter_normalized(risk_rescaled)).loss
span = np.ptp(as_it_was)
print(f"the loss along the line spans {span:.3f}")
print(f"rescaled network, the same direction:       {abs(same_step - as_it_was).max() / span:.1%} of that away")
print(f"rescaled network, its filters' own lengths: {abs(normalized - as_it_was).max() / span:.1e} of that away")
assert abs(same_step - as_it_was).max() > 0.02 * span
assert abs(normalized - as_it_was).max() < 1e-3 * span  # eps = 1e-5 under the root makes it not quite the same

# %% [markdown]
# A sharpness is no better: it is that of these weights, not of the function. The first layer's is divided by $4^2$.


# %%
def layer_sharpness(model: nn.Module) -> float:
    layer = nl.EmpiricalRisk(model, squared_error, (x, y), params="0.weight", mode="train").double()
    return float(eigsh(hessian(layer), 1, tol=1e-6).values[0])


ratio = layer_sharpness(model) / layer_sharpness(rescaled)
print(f"sharpness of the first layer: divided by {ratio:.3f}; 4^2 = {SCALE**2:.0f}")
assert abs(ratio / SCALE**2 - 1) < 1e-2

# %% [markdown]
# ## Which statistics?
#
# All this holds while batch norm takes the statistics of the batch. In eval mode the running statistics stay those of
# the center, on the whole surface. Walk along the first layer's own weights, which only changes their length:

# %%
lengthen = {"0.weight": risk.parameters["0.weight"]}
train_line = loss_line(risk, lengthen, reach=0.5)
eval_line = loss_line(nl.EmpiricalRisk(model, squared_error, (x, y), mode="eval").double(), lengthen, reach=0.5)
for line in (train_line, eval_line):
    print(f"mode {line.mode}, statistics: {line.statistics}: loss {line.loss[25]:.4f} in the center,"
          f" {line.loss.min():.4f} to {line.loss.max():.4f} on the line")  # fmt: skip
assert np.ptp(train_line.loss) < 1e-3 * np.ptp(eval_line.loss)

# %% [markdown]
# ## What a surface cannot tell
#
# A plane shows two of all dimensions, and which two makes the picture. `LossSurface` is a probe like the others. Both
# planes reach equally far from the same network; the axes count lengths of the directions, which for an eigenvector
# is 1.

# %%
REACH, SIDE = 0.2, 13 if FAST else 21


def plane(name: str, probe: nl.probes.LossSurface) -> nl.Run:
    with nl.Lens(model, squared_error, data=(x, y), probes=[probe], out=FOLDER / name, min_runs=1, on_error="raise"):
        pass  # measured before the first step, and there is none
    return nl.open_run(FOLDER / name)


random_plane = plane("random", nl.probes.LossSurface("random", steps=SIDE, reach=REACH, samples=len(x)))
length = random_plane.array("loss_surface", "length", step=0).values[0]  # eigenvectors have length 1
steep = nl.probes.LossSurface("eigenvectors", steps=SIDE, reach=float(REACH * length), samples=len(x))
planes = {"random": random_plane, "top eigenvectors": plane("eigenvectors", steep)}
axes = nl.plot.loss_surface(planes)

# %%
rise = {name: np.ptp(run.array("loss_surface", "loss", step=0).values) for name, run in planes.items()}
print(", ".join(f"{name}: the loss rises by {value:.2f}" for name, value in rise.items()))
assert rise["top eigenvectors"] > rise["random"]

# %% [markdown]
# The same network, the same distance, the same colors. Random directions hardly meet the steep ones: the mean curvature
# along them is the trace of the Hessian over the number of dimensions. The sharpness that training runs into is not on
# that picture, nor are the directions in which the loss curves downwards.

# %%
n = H.shape[0]
random = torch.nn.functional.normalize(torch.randn(n, 100, generator=torch.Generator().manual_seed(0)).double(), dim=0)
curvatures = (random * (H @ random)).sum(0)
mean_curvature = trace(H)
bottom = eigsh(H, 1, "SA", tol=1e-3)
print(f"{n} dimensions, largest eigenvalue {float(top.values[0]):.2f}, smallest {float(bottom.values[0]):.3f}")
print(f"trace / n = {float(mean_curvature) / n:.4f} +- {mean_curvature.error / n:.4f}")
print(f"100 random directions: {float(curvatures.mean()):.4f}, from {curvatures.min():.4f} to {curvatures.max():.4f}")
standard_error = float(curvatures.std()) / 10
assert abs(float(curvatures.mean()) - float(mean_curvature) / n) < 4 * (standard_error + mean_curvature.error / n)
assert float(curvatures.max()) < 0.05 * float(top.values[0])
assert float(curvatures.min()) > 0 > float(bottom.values[0]) + float(bottom.residuals[0])

# %% [markdown]
# ## What did it cost?

# %%
for name, training in (descent | others | {"momentum 0.9": heavy}).items():
    cost = {r.name: r.value for r in training.run.readings("lens", len(training.losses))}
    products = training.readings("matvecs")
    print(f"{name:22s} {cost['lens_seconds']:5.1f} s of measuring on top of {cost['bare_seconds']:4.1f} s of training:"
          f" {len(products)} times {products.mean():.0f} products on average")  # fmt: skip
for name, run in planes.items():
    (measured,) = (m for m in run.measurements if m.probe == "loss_surface")
    print(f"{name:22s} {measured.seconds:5.1f} s, {run.array('loss_surface', 'loss').values.size} losses")

# %% [markdown]
# A product costs about three gradients, and a step of full-batch training costs one. So the share is the products of
# one measurement, times three, over the steps between two measurements; measure more rarely, or set `budget=`.
