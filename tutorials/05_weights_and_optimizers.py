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
# # Weights and optimizers
#
# A normalization behind a layer makes the length of its weights meaningless, and with it the learning rate. This
# tutorial shows what then sets the pace of training, what weight decay does there, and how rescaling takes its place.
# Without a normalization the weights of a ReLU network still have many ways to be the same function, which
# equi-normalization chooses from. In the end an optimizer takes the steps of batch norm where no batch norm can be:
# on one image at a time.

# %%
import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import normlens as nl
from normlens.nn.parametrize.weight_norm import weight_norm
from normlens.optim.bnp import BNP
from normlens.optim.equi_normalization import EquiNormalization, equi_normalize
from normlens.optim.mean_normalization import MeanNormalization
from normlens.optim.rescaling_graph import find_streams
from normlens.optim.weight_rescaling import WeightRescaling
from normlens.plot.style import NEUTRAL, dress, palette

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests: fewer seeds and passes over the images
SEEDS = (0,) if FAST else (0, 1, 2)
FOLDER = Path(tempfile.mkdtemp())

digits = nl.data.digits()
images, labels = digits.train[0].double(), digits.train[1]
test_images, test_labels = digits.test[0].double(), digits.test[1]


def make_network(*, norm: bool, seed: int = 0) -> nl.models.MLP:
    layer = partial(nl.nn.BatchNorm, eps=0.0) if norm else None  # with eps = 0 what follows is exact
    return nl.models.MLP(digits.shape, 10, norm=layer, widths=(64, 64) if norm else (64, 64, 64), seed=seed).double()


def batches(size: int, epochs: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order).split(size):
            yield images[rows], labels[rows]


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(test_images).argmax(1) == test_labels).double().mean())


# %% [markdown]
# ## A length that nothing depends on
#
# Multiply the weights of a layer by $c$. Where batch norm follows, the loss stays, so it is flat along $w$:
# $\langle w,\nabla L\rangle = 0$, and the gradient is divided by $c$. The head has no normalization behind it, and none
# of this holds. In float64.


# %%
def loss_and_gradient(c: float, layer: str) -> tuple[float, Tensor, Tensor]:
    """The loss of the first 256 images with the weights of a layer times c; these weights, and their gradient."""
    model = make_network(norm=True)
    weight = model.get_parameter(f"{layer}.weight")
    with torch.no_grad():
        weight.mul_(c)
    loss = cross_entropy(model(images[:256]), labels[:256])
    (gradient,) = torch.autograd.grad(loss, weight)
    return loss.item(), weight.detach().flatten(), gradient.flatten()


print("layer            c      loss   |gradient| c   cosine of weights and gradient")
for layer in ("block1.linear", "block2.linear", "head"):
    loss, _, gradient = loss_and_gradient(1.0, layer)
    for c in (0.3, 1.0, 3.0):
        other, weight, slope = loss_and_gradient(c, layer)
        cosine = float(weight @ slope / weight.norm() / slope.norm())
        print(f"{layer:13s}{c:5.1f}{other:10.4f}{float(slope.norm()) * c:15.4f}{cosine:15.1e}")
        if layer != "head":
            assert abs(other - loss) < 1e-12
            assert abs(cosine) < 1e-12
            assert torch.allclose(slope * c, gradient, rtol=1e-10, atol=1e-14)
        elif c != 1:
            assert abs(other - loss) > 0.1
            assert abs(cosine) > 0.01

# %% [markdown]
# ## The effective learning rate
#
# A step $\eta\nabla L$ turns $w$ by about $\eta\|\nabla L\| / \|w\|$, and the gradient itself goes as $1/\|w\|$: what
# counts is $\eta/\|w\|^2$. So four times the length and sixteen times the rate is the same training, and four times
# the length alone is a sixteenth of the rate. Powers of two multiply without rounding, so "the same" is every bit.


# %%
def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in model.named_parameters() if name.endswith("linear.weight")]


def optimizer_of(model: nn.Module, rate: float, *, others: float | None = None, **settings: float) -> torch.optim.SGD:
    """SGD with a rate, and settings such as weight decay, for the hidden weights; another rate for the rest."""
    hidden = hidden_weights(model)
    rest = [p for p in model.parameters() if all(p is not weight for weight in hidden)]
    groups = [{"params": hidden, "lr": rate, **settings}, {"params": rest, "lr": others or rate}]
    return torch.optim.SGD(groups, lr=rate)


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, size: int = 64, epochs: int = 6) -> Tensor:
    found = []
    for x, y in batches(size, epochs):
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


def start(length: float, rate: float) -> Tensor:
    model = make_network(norm=True)
    with torch.no_grad():
        for weight in hidden_weights(model):
            weight.mul_(length)
    return losses(model, optimizer_of(model, rate, others=0.1))


plain, both = start(1, 0.1), start(4, 1.6)
longer, slower = start(4, 0.1), start(1, 0.1 / 16)
for name, found in {"|w|, rate 0.1": plain, "4 |w|, rate 1.6": both,
                    "4 |w|, rate 0.1": longer, "|w|, rate 0.1/16": slower}.items():  # fmt: skip
    print(f"{name:18s} loss of the last 20 steps {found[-20:].mean():.4f}")
assert torch.equal(plain, both)
assert torch.equal(longer, slower)
assert longer[-20:].mean() > 2 * plain[-20:].mean()

# %% [markdown]
# ## SGD lengthens, weight decay shortens
#
# The gradient stands at a right angle to $w$, so by Pythagoras each step of SGD adds its square:
# $\|w'\|^2=\|w\|^2+\eta^2\|\nabla L\|^2$. With weight decay $\lambda$ the first term is $(1-\eta\lambda)^2\|w\|^2$.
# Momentum points into the past and not at a right angle: there the equation ends.


# %%
def violation(rate: float = 1.0, **settings: float) -> float:
    """By how much the equation is off in a step, in units of what the gradients added; the largest of 50 steps."""
    model = make_network(norm=True)
    optimizer = optimizer_of(model, rate, **settings)
    (first, *_), worst = hidden_weights(model), 0.0
    for _, (x, y) in zip(range(50), batches(64, 3), strict=False):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        before, added = first.detach().square().sum(), (rate * first.grad).square().sum()
        optimizer.step()
        kept = (1 - rate * settings.get("weight_decay", 0.0)) ** 2
        worst = max(worst, float((first.detach().square().sum() - kept * before - added).abs() / added))
    return worst


print(f"SGD {violation():.0e}, with weight decay {violation(weight_decay=0.02):.0e},"
      f" with momentum {violation(momentum=0.9):.0e}")  # fmt: skip
assert violation() < 1e-9
assert violation(weight_decay=0.02) < 1e-9
assert violation(momentum=0.9) > 1

# %% [markdown]
# Growth without decay slows training down; decay without growth would speed it up. Where the two balance, the weights
# turn in every step by $\arccos(1-\eta\lambda)\approx\sqrt{2\eta\lambda}$, whatever the gradients. That is what weight
# decay does to a normalized layer: not small weights, but a pace. Rescaling (WRS) holds the length, and `norm=None`
# holds the one that the weights have now. `WeightDynamics` measures the lengths. It knows the angles, too, but of the
# steps at which it measures; they vary, so we take down each of them, for a root mean square.

# %%
EPOCHS = 12 if FAST else 40
RUNS = {  # rate, weight decay, rescaling
    "SGD": (1.0, 0.0, False),
    "weight decay 0.005": (1.0, 0.005, False),
    "weight decay 0.02": (1.0, 0.02, False),
    "rate / 5, decay 0.1": (0.2, 0.1, False),
    "rescaling": (1.0, 0.0, True),
}


class Watched(NamedTuple):
    run: nl.Run
    angles: np.ndarray  # (steps,), of the first layer in radians

    def readings(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        frame = self.run.frame("weight_dynamics")
        chosen = frame[(frame["name"] == name) & (frame["layer"] == "block1.linear")]
        return chosen["step"].to_numpy(), chosen["value"].to_numpy(float)

    def pace(self) -> float:
        """The angle of a step, root mean square over the last third of the run."""
        return float(np.sqrt(np.mean(self.angles[-len(self.angles) // 3 :] ** 2)))


def watch(name: str, rate: float, decay: float, rescaled: bool) -> Watched:
    model, angles, file = make_network(norm=True), [], FOLDER / name.replace("/", "by")
    optimizer, (weight, _) = optimizer_of(model, rate, weight_decay=decay), hidden_weights(model)
    if rescaled:
        WeightRescaling(model, optimizer, norm=None)
    with nl.Lens(model, cross_entropy, data=(images[:256], labels[:256]), probes=[nl.probes.WeightDynamics()],
                 out=file, every=23, optimizer=optimizer, min_runs=1, on_error="raise") as lens:  # fmt: skip
        for x, y in batches(64, EPOCHS):
            before = weight.detach().flatten().clone()
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lens.step(loss=loss)
            cosine = torch.cosine_similarity(before, weight.detach().flatten(), dim=0)
            angles.append(math.acos(min(1.0, float(cosine))))
    return Watched(nl.open_run(file), np.array(angles))


watched = {name: watch(name, *settings) for name, settings in RUNS.items()}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
figure.patch.set_alpha(0.0)
for (name, found), color in zip(watched.items(), palette(len(watched)), strict=True):
    left.plot(*found.readings("norm"), color=color, label=name)
    squares = np.convolve(found.angles**2, np.ones(50) / 50, "valid")
    right.plot(np.arange(len(squares)) + 50, np.sqrt(squares), color=color)
    if RUNS[name][1]:
        right.axhline(found.readings("angle_equilibrium")[1][0], color=color, linestyle="--", linewidth=1)
left.set(xlabel="optimizer steps", ylabel="length of the first layer", ylim=(0, None))
right.set(xlabel="optimizer steps", ylabel="angle of a step [rad]", ylim=(0, None))
for ax in (left, right):
    dress(ax)
_ = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=NEUTRAL)

# %%
print(f"{'':22s}length: first   last    effective rate    angle   arccos(1 - rate decay)")
for name, found in watched.items():
    rate, decay, rescaled = RUNS[name]
    (_, lengths), (_, effective) = found.readings("norm"), found.readings("effective_rate")
    settled = math.acos(1 - rate * decay)
    print(f"{name:22s}{lengths[0]:13.2f}{lengths[-1]:7.2f}{effective[-1]:18.4f}{found.pace():9.4f}"
          + (f"{settled:18.4f}" if decay else ""))  # fmt: skip
    assert found.readings("invariance")[1].max() < 1e-12
    assert np.allclose(effective, rate / lengths**2)
    if rescaled:
        assert np.ptp(lengths) < 1e-12 * lengths[0]
    elif not decay:
        assert (np.diff(lengths) > 0).all()
    elif rate * decay == 0.02:
        assert abs(found.pace() / settled - 1) < 0.05
        assert abs(found.readings("angle_equilibrium")[1][0] / settled - 1) < 1e-12
assert watched["weight decay 0.02"].pace() > 5 * watched["SGD"].pace()
late = {name: found.readings("norm")[1][-1] for name, found in watched.items()}
assert late["weight decay 0.02"] > 2 * late["rate / 5, decay 0.1"]
for name in ("SGD", "rescaling"):
    assert watched[name].pace() < 0.5 * np.sqrt(np.mean(watched[name].angles[:20] ** 2))

# %% [markdown]
# The dashed lines are the prediction, which knows $\eta\lambda$ alone: rate and decay may be traded for one another, at
# lengths that differ. Without decay, and under rescaling, the steps get smaller as the gradients do.

# %% [markdown]
# ## Rescaling in the place of weight decay
#
# Rescaling changes no function: a network before and after it, in train mode and in eval mode, where the running
# statistics are carried along. And the length at which the weights start no longer decides how fast training is.

# %%
model = make_network(norm=True)
optimizer = optimizer_of(model, 0.1)
losses(model, optimizer, epochs=1)


def outputs() -> tuple[Tensor, Tensor]:
    evaluated, trained = (copy.deepcopy(model).train(mode)(test_images).detach() for mode in (False, True))
    return evaluated, trained


before = outputs()
with torch.no_grad():
    WeightRescaling(model, optimizer).after_step()  # what it does after each step; here after none
change = max(float((one - other).abs().max()) for one, other in zip(before, outputs(), strict=True))
lengths = torch.cat([weight.detach().norm(dim=1) for weight in hidden_weights(model)])
print(f"lengths from {lengths.min():.6f} to {lengths.max():.6f}, largest change of an output {change:.0e}")
assert change < 1e-10


# %%
def train(length: float, decay: float, rescaled: bool, seed: int) -> tuple[float, float]:
    """The loss after one hundred steps (mean of twenty), and the test accuracy in the end."""
    model = make_network(norm=True, seed=seed)
    with torch.no_grad():
        for weight in hidden_weights(model):
            weight.mul_(length)
    optimizer = optimizer_of(model, 0.1, weight_decay=decay)
    if rescaled:
        WeightRescaling(model, optimizer)
    found = []
    for x, y in batches(64, 8 if FAST else 20, seed):
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return float(np.mean(found[80:100])), accuracy(model)


table: dict[tuple[str, float], np.ndarray] = {}
print(f"{'loss after 100 steps, test accuracy':36s}" + "".join(f"{f'start x {length:g}':>15s}" for length in (1, 8)))
for name, decay, rescaled in (("nothing", 0.0, False), ("weight decay 5e-3", 5e-3, False), ("rescaling", 0.0, True)):
    for length in (1.0, 8.0):
        table[name, length] = np.median([train(length, decay, rescaled, seed) for seed in SEEDS], axis=0)
    cells = (table[name, length] for length in (1.0, 8.0))
    print(f"{name:36s}" + "".join(f"{loss:8.3f} {right:.3f} " for loss, right in cells))

assert all(table[name, 8.0][0] > 2.5 * table[name, 1.0][0] for name in ("nothing", "weight decay 5e-3"))
assert abs(table["rescaling", 8.0][0] / table["rescaling", 1.0][0] - 1) < 0.1
assert all(abs(table["rescaling", 1.0][1] - table[name, 1.0][1]) < 0.015 for name in ("nothing", "weight decay 5e-3"))

# %% [markdown]
# Rescaling is as accurate as weight decay. So is doing nothing, from the usual start: on this small problem there is
# nothing to regularize. What rescaling gives is a learning rate that means the same from the first step to the last.
#
# `weight_norm` writes the length down as a parameter of its own, $w = g\,v/\|v\|$, without any normalization of
# activations. The rest is the same story, told by $v$: its gradient is orthogonal to it. The paper's formulas on
# $v=(3,4)$, $g=10$, and a gradient $(1,0)$ of $w$:

# %%
unit = nn.Linear(2, 1, bias=False, dtype=torch.float64)
unit.weight.data = torch.tensor([[6.0, 8.0]], dtype=torch.float64)
weight_norm(unit)
g, v = unit.parametrizations.weight.original0, unit.parametrizations.weight.original1
g.data, v.data = torch.full_like(g, 10.0), torch.tensor([[3.0, 4.0]], dtype=torch.float64)
unit.weight[0, 0].backward()
print(f"w = {unit.weight[0].tolist()}, gradients: g {g.grad.item():.2f}, v {[round(d, 9) for d in v.grad[0].tolist()]}")
assert torch.allclose(g.grad, torch.full_like(g, 0.6))
assert torch.allclose(v.grad, torch.tensor([[1.28, -0.96]], dtype=torch.float64))
assert abs(float((v.detach() * v.grad).sum())) < 1e-12

# %% [markdown]
# ## Without a normalization: equi-normalization
#
# Between two layers with a ReLU, each unit may be multiplied by $d>0$ if the next layer divides by it. To the function
# that is nothing, to SGD it is a lot. ENorm chooses $d$ so that the weights into each unit are as long as those out of
# it: the smallest sum of squares that the function has, and there is only one.


# %%
def unbalanced(spread: float, seed: int = 1) -> nl.models.MLP:
    """The same function, each unit times exp(spread n) with a normal n of its own."""
    model, draw = make_network(norm=False), torch.Generator().manual_seed(seed)
    for stream in find_streams(model):
        into, out = (model.get_submodule(names[0]) for names in (stream.writers, stream.readers))
        factors = (spread * torch.randn(into.out_features, generator=draw, dtype=torch.float64)).exp()
        for tensor, factor in ((into.weight, factors[:, None]), (into.bias, factors), (out.weight, 1 / factors)):
            tensor.data.mul_(factor)
    return model


def energy(model: nn.Module) -> float:
    return float(sum(weight.detach().square().sum() for weight in model.parameters() if weight.dim() == 2))


with torch.no_grad():
    answer = make_network(norm=False)(test_images)
    for spread in (0.0, 1.0):
        model = unbalanced(spread)
        energies = [energy(model)] + [energy(equi_normalize(model)) for _ in range(30)]
        change = float((model(test_images) - answer).abs().max())
        print(f"spread {spread}: sum of squares {', '.join(f'{e:.1f}' for e in energies[:5])} ... {energies[-1]:.4f};"
              f" the outputs moved by {change:.0e}")  # fmt: skip
        assert change < 1e-12
        assert (np.diff(energies) < 1e-10).all()

one, other = (equi_normalize(unbalanced(1.0, seed), sweeps=200) for seed in (1, 2))
differences = [float((p - q).detach().abs().max()) for p, q in zip(one.parameters(), other.parameters(), strict=True)]
layers = [float(p.detach().norm()) for p in one.parameters() if p.dim() == 2]
print(f"two ways to unbalance it, one result: {max(differences):.0e} apart; lengths of its layers:",
      ", ".join(f"{length:.4f}" for length in layers))  # fmt: skip
assert max(differences) < 1e-12
assert np.ptp(layers) < 1e-12 * layers[0]


# %% [markdown]
# In the optimum all layers are equally long. Now train from functions that are all the same, and are not:


# %%
def trained(spread: float, *, sweeps: int | None) -> tuple[float, float]:
    """Loss of the last pass and test accuracy: SGD alone, or with ENorm, and that many sweeps before the first step."""
    model = unbalanced(spread)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if sweeps is not None:
        equi_normalize(model, sweeps=sweeps)
        EquiNormalization(model, optimizer)  # from here on a sweep after each step
    found = losses(model, optimizer, epochs=5)
    return float(found[-23:].mean()), accuracy(model)


print("loss, accuracy    SGD alone      ENorm after steps    and before the first")
outcome = {}
for spread in (0.0, 0.5, 1.0, 1.5):
    outcome[spread] = alone, _, before = [trained(spread, sweeps=sweeps) for sweeps in (None, 0, 30)]
    print(f"spread {spread:3.1f}" + "".join(f"{loss:14.3f} {right:.3f} " for loss, right in outcome[spread]))
    assert abs(before[0] - outcome[0.0][2][0]) < 1e-2
assert outcome[1.5][0][1] < 0.2
assert outcome[1.5][1][1] < 0.2
assert outcome[1.5][2][1] > 0.9
assert outcome[0.5][0][0] < 0.9 * outcome[0.5][2][0]

# %% [markdown]
# Balanced beforehand, it does not matter how the function was written down. From the worst start SGD fails alone, and
# ENorm comes too late: the first step has blown the weights up. But the smallest weights are not the fastest: a little
# out of balance, SGD alone got further in the same time.

# %% [markdown]
# ## Batch norm's steps without batch norm
#
# BNP keeps the network as it is and changes the gradient: with the mean $\mu$ and variance $\sigma^2$ of a layer's
# inputs, $G_W\leftarrow(G_W-G_b\mu^\top)/\sigma^2$, then $G_b\leftarrow G_b-G_W\mu$. That is, exactly, the step of a
# network with batch norm in front of the layer, its statistics held fixed. To see it, take both:

# %%
x, y = images[:256].flatten(1)[:, 18:22], labels[:256]  # four pixels that all vary
mean, deviation = x.mean(0), x.std(0, correction=0)
layer, normalized = nn.Linear(4, 10).double(), nn.Linear(4, 10).double()
with torch.no_grad():  # the same function: W = V / deviation, b = d - W mean
    for parameter in normalized.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    layer.weight.copy_(normalized.weight / deviation)
    layer.bias.copy_(normalized.bias - layer.weight @ mean)
optimizer = torch.optim.SGD([*layer.parameters(), *normalized.parameters()], lr=0.5)
with BNP(layer, optimizer, statistics="batch", eps1=0.0, eps2=0.0, q=1.0):
    (cross_entropy(layer(x), y) + cross_entropy(normalized((x - mean) / deviation), y)).backward()
    optimizer.step()
    difference = float((layer(x) - normalized((x - mean) / deviation)).detach().abs().max())
print(f"after the step the outputs differ by {difference:.0e}")
assert difference < 1e-12

# %% [markdown]
# The statistics may be running ones, over the images of the past. So it works on one image at a time, where batch norm
# has no variance to take, and says so. `MeanNormalization` does the centering alone. Each at three learning rates, and
# of these the one with the lowest loss in the end; the loss is that of all training images, the median of three seeds.

# %%
try:
    make_network(norm=True)(images[:1])
except ValueError as error:
    print("batch norm:", error)
else:
    raise AssertionError

STEPS, LOOK = (600, 50) if FAST else (1000, 50)
TRANSFORMS = {
    "SGD": (lambda model, optimizer: None, (0.01, 0.03, 0.1)),
    "MeanNormalization": (MeanNormalization, (0.01, 0.03, 0.1)),
    "BNP": (partial(BNP, bias_correction=True), (0.1, 0.3, 1.0)),  # q makes its steps smaller at batch size 1
}


def online(transform: Callable[..., object], rate: float, seed: int) -> list[float]:
    model = nl.models.MLP(digits.shape, 10, norm=None, seed=seed).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    transform(model, optimizer)
    found = []
    for step, (x, y) in zip(range(1, STEPS + 1), batches(1, 1, seed), strict=False):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % LOOK == 0:
            with torch.no_grad():
                found.append(float(cross_entropy(model.eval()(images), labels)))
            model.train()
    return found


best: dict[str, np.ndarray] = {}
costs: dict[str, float] = {}
steps = np.arange(LOOK, STEPS + 1, LOOK)
figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
figure.patch.set_alpha(0.0)
for (name, (transform, rates)), color in zip(TRANSFORMS.items(), palette(3), strict=True):
    curves = {}
    for rate in rates[1:2] if FAST else rates:
        began = time.process_time()
        curves[rate] = np.array([online(transform, rate, seed) for seed in SEEDS])
        costs[name] = (time.process_time() - began) / len(SEEDS) / STEPS
    chosen = min(curves, key=lambda rate: np.median(curves[rate][:, -1]))
    best[name] = np.median(curves[chosen], axis=0)
    below = steps[best[name] <= 0.5][0]
    print(f"{name:18s} rate {chosen:4g}: loss {best[name][-1]:.3f} after {STEPS} images, below 0.5 after {below};"
          f" {1e3 * costs[name]:.2f} ms for each")  # fmt: skip
    ax.fill_between(steps, curves[chosen].min(0), curves[chosen].max(0), color=color, alpha=0.2, linewidth=0)
    ax.plot(steps, best[name], color=color, label=name)
ax.set(xlabel="images seen, one at a time", ylabel="loss of all training images", yscale="log")
dress(ax)
_ = ax.legend(frameon=False, labelcolor=NEUTRAL)

# %%
below = {name: int(steps[losses <= 0.5][0]) for name, losses in best.items()}
gain = {name: float(np.log(best["SGD"][-4:] / losses[-4:]).mean()) for name, losses in best.items()}
print(f"BNP needs {below['BNP'] / below['SGD']:.0%} of the images for a loss of 0.5; in the end centering alone has"
      f" {gain['MeanNormalization'] / gain['BNP']:.0%} of its gain in the logarithm of the loss")  # fmt: skip
assert below["BNP"] <= 0.6 * below["SGD"]
assert gain["BNP"] > 0.5
assert gain["MeanNormalization"] > 0.5 * gain["BNP"]
assert costs["BNP"] > costs["SGD"]


def largest_eigenvalue(inputs: Tensor) -> float:
    return float(torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1])


pixels = images.flatten(1)
with torch.no_grad():
    hidden = make_network(norm=False).block1(pixels)
for name, inputs in {"pixels": pixels, "first ReLUs": hidden}.items():
    whole, centered = largest_eigenvalue(inputs), largest_eigenvalue(inputs - inputs.mean(0))
    print(f"{name:11s} largest eigenvalue of the second moments {whole:.2f}, centered {centered:.2f};"
          f" square of the mean {inputs.mean(0).square().sum():.2f}")  # fmt: skip
    assert whole > 5 * centered

# %% [markdown]
# BNP needs about half the images that SGD needs, for more work on each. Most of its gain is the centering: pixels are
# never negative, nor is what a ReLU puts out, so the largest direction in a layer's input is its mean, and it is the
# largest that limits the learning rate.
