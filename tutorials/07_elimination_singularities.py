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
# # Elimination singularities
#
# A unit can fall out of a network: its outgoing weights are zero, or its incoming ones, or it says what another unit
# says already, or it is off for every image. There the outputs do not change along whole directions of the weights,
# and gradients that know nothing of these directions cannot lead away. This tutorial counts the directions, shows why
# batch norm keeps its distance from such places and layer norm need not, measures the distance on digits, and watches
# a network without normalization lose its units.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import normlens as nl
from normlens.plot.style import NEUTRAL, dress, palette

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests: fewer seeds and passes over the images
SEEDS = (0,) if FAST else (0, 1, 2)
folder = Path(tempfile.mkdtemp())
digits = nl.data.digits()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def null_and_negative(matrix: Tensor) -> tuple[int, int]:
    values = torch.linalg.eigvalsh(matrix)
    edge = 1e-10 * values.abs().max()
    return int((values.abs() <= edge).sum()), int((values < -edge).sum())


# %% [markdown]
# ## Two units
#
# $f(x) = a_1 \tanh(w_1^\top x) + a_2 \tanh(w_2^\top x)$ with $x$ in three dimensions has eight weights. For the squared
# loss the Fisher matrix is $E[\nabla f \nabla f^\top]$, up to a factor; its null directions are those along which no
# output changes. The counts that theory gives, for $d = 3$: $d$ without an outgoing weight, one without incoming
# weights, $d + 1$ where both units have the same ones.

# %%
x, noise = normal(64, 3, seed=0), normal(64, 1, seed=1)


def two_units(kind: str, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    relu = act is nn.ReLU
    model = nn.Sequential(nn.Linear(3, 2, bias=relu), act(), nn.Linear(2, 1, bias=False)).double()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = normal(*parameter.shape, seed=10 + seed)
    weights, outgoing = model[0].weight.data, model[2].weight.data
    if kind == "outgoing":
        outgoing[:, 0] = 0
    if kind == "incoming":
        weights[0] = 0
    if kind == "overlap":
        weights[0] = weights[1]
    if kind == "dead":
        model[0].bias.data[0] = -50
    return model


rows = {}
for kind in ("generic", "outgoing", "incoming", "overlap"):
    model = two_units(kind)
    anywhere = nl.EmpiricalRisk(model, mse_loss, (x, noise))
    at_a_minimum = nl.EmpiricalRisk(model, mse_loss, (x, model(x).detach()))
    rows[kind] = (
        null_and_negative(nl.curvature.gauss_newton(anywhere).dense())[0],
        *null_and_negative(nl.curvature.hessian(anywhere).dense()),
        null_and_negative(nl.curvature.hessian(at_a_minimum).dense())[0],
    )
    fisher, hessian, negative, minimum = rows[kind]
    found = f"Fisher {fisher} null; Hessian {hessian} null, {negative} negative; at a minimum {minimum} null"
    print(f"{kind:>8}: {found}")
assert [row[0] for row in rows.values()] == [0, 3, 1, 4]
assert [row[1] for row in rows.values()] == [0, 2, 0, 0]
assert [row[3] for row in rows.values()] == [0, 3, 1, 4]

# %% [markdown]
# The Fisher matrix is singular wherever a unit is lost. The Hessian is as singular at critical points alone: elsewhere
# the residuals couple $a$ with $w$ and make saddles out of null directions. (Without outgoing weights, $d - 1$ stay.)
# One case is the same everywhere: a ReLU that is off for all data takes all of its weights with it,
# $d_{in} + 1 + d_{out}$, from either matrix.

# %%
dead = nl.EmpiricalRisk(two_units("dead", nn.ReLU), mse_loss, (x, noise))
fisher, _ = null_and_negative(nl.curvature.gauss_newton(dead).dense())
hessian, _ = null_and_negative(nl.curvature.hessian(dead).dense())
print(f"a dead unit of two: Hessian {hessian} null directions, Fisher matrix {fisher}")
assert hessian == 3 + 1 + 1
assert fisher == hessian + 1  # the scale of the other unit, which may stand before or behind its ReLU

# %% [markdown]
# ## Why batch norm stays away
#
# What decides whether a channel is on is its offset $s = E[z]/\mathrm{Std}[z]$ before the ReLU. A Gaussian channel is
# on for a share $\Phi(s)$ of its inputs, and none at all for more than $1/(1+s^2)$ if $s < 0$ (Cantelli). Behind batch
# norm $s = \beta/|\gamma|$ whatever the images are: it moves as fast as two parameters do, and no faster.

# %%
norm = nl.nn.BatchNorm(3, eps=0.0).double()
with torch.no_grad():
    norm.weight.copy_(torch.tensor([1.0, 0.5, 2.0]))
    norm.bias.copy_(torch.tensor([-1.0, -1.0, -6.0]))
offsets = []
for scale in (1.0, 1e3):
    z = norm(scale * normal(500, 3, seed=2).exp() + scale)
    offsets.append(z.mean(0) / z.std(0, correction=0))
    active = (z > 0).double().mean(0)
    print("offsets", [f"{s:.3f}" for s in offsets[-1]], "active", [f"{share:.1%}" for share in active])
    assert bool((active <= 1 / (1 + offsets[-1] ** 2)).all())
torch.testing.assert_close(offsets[0], torch.tensor([-1.0, -2.0, -3.0]).double())
torch.testing.assert_close(offsets[0], offsets[1])

# %% [markdown]
# Layer and group norm hold each image in place, not each channel. Averaged over the channels of a group,
# $\mu_c$ is 0 and $\sigma_c^2 + \mu_c^2$ is 1, for any images; a single channel may still stand anywhere up to
# $|\mu_c| = \sqrt{C_g - 1}$ with no spread at all. Two images with two channels are enough.

# %%
images = torch.tensor([[3.0, 1.0], [5.0, 1.0]]).double()
z = nl.nn.LayerNorm(2, eps=0.0).double()(images).detach()
print("layer norm:", z.tolist())
print("means", z.mean(0).tolist(), "deviations", z.std(0, correction=0).tolist())
assert z.tolist() == [[1, -1], [1, -1]]  # every image is normalized, and the second channel is dead

z = nl.nn.GroupNorm(8, groups=2, eps=0.0).double()(normal(20, 8, 5, 5, seed=3).exp()).detach()
mean, deviation = (moment.view(2, 4) for moment in (z.mean((0, 2, 3)), z.std((0, 2, 3), correction=0)))
second = (mean**2 + deviation**2).mean(1)
print("group norm: mean of means", mean.mean(1).tolist(), "of second moments", second.tolist())
torch.testing.assert_close(second, torch.ones(2).double())

# %% [markdown]
# ## The map, on digits
#
# Four networks that differ in their normalization alone. Batch-channel norm is a batch norm and behind it a group norm:
# the one keeps the channels alive, the other the images at scale one. `Elimination` measures mean and spread of every
# channel before its ReLU, and StatDiff, how far the normalized features, before the last affine map, are from batch
# norm's mean 0 and deviation 1.

# %%
NORMS = ("batch_norm", "batch_channel_norm", "group_norm", "layer_norm")
EPOCHS = 3 if FAST else 5
probe_batch = (digits.train[0][:256], digits.train[1][:256])


def train(model: nn.Module, name: str, probes: list, *, every: int, lr: float, epochs: int, seed: int = 0) -> nl.Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    path = folder / name
    with nl.Lens(model, cross_entropy, data=probe_batch, probes=probes, out=path, every=every, name=name) as lens:
        for _ in range(epochs):
            for batch, classes in digits.loader(64, seed=seed):
                optimizer.zero_grad()
                loss = cross_entropy(model(batch), classes)
                loss.backward()
                optimizer.step()
                lens.step(loss=loss)
    return nl.open_run(path)


runs = {}
for name in NORMS:
    cnn = nl.models.CNN(digits.shape, 10, norm=name, seed=0)
    runs[name] = train(cnn, name, [nl.probes.Elimination()], every=23, lr=0.05, epochs=EPOCHS)
_ = nl.plot.elimination_map(runs)

# %%
_ = nl.plot.statdiff(runs)

# %%
table = nl.plot.statdiff_data(runs)
distance = table.pivot_table(index="layer", columns=["name", "run"], values="value", sort=False)
print(distance.round(3).T)
for kind in ("statdiff_mean", "statdiff_std"):
    of = distance[kind]
    assert (of["batch_norm"] < 1e-3).all()
    assert (of["batch_norm"] < of["batch_channel_norm"]).all()
    assert (of["batch_channel_norm"] < of[["group_norm", "layer_norm"]].min(axis=1) / 2).all()

# %% [markdown]
# Batch norm stands at zero by construction, and batch-channel norm is in between, in every layer: its group norm moves
# the channels, but only as far as the affine map of its batch norm lets it.
#
# ## A network that loses its units
#
# Now without any normalization, with a learning rate that is a little too large. All four steps the probe looks at the
# offsets; a unit that is off for all 256 images counts as dead.

# %%
DYING = 1 if FAST else 3
dying = {}
for seed in range(DYING):
    mlp = nl.models.MLP(digits.shape, 10, norm=None, seed=seed)
    probes = [nl.probes.Elimination(), nl.probes.Singularity(when=nl.run.schedule.at(0, 44))]
    dying[f"seed {seed}"] = train(mlp, f"mlp{seed}", probes, every=4, lr=0.1, epochs=2, seed=seed)
_ = nl.plot.dead_channels(dying)


# %% [markdown]
# Did the probe know beforehand? Take every unit that was alive at first and is dead at the end, and its offset at the
# last measurement at which it was on for at least one image. How many of the units that were alive then stood lower?


# %%
def before_death(run: nl.Run) -> list[tuple[float, float]]:
    """Offset and rank, from 0 for the lowest, of each unit that dies, at the last measurement at which it lives."""
    frame = run.frame("elimination")
    offset, rate = (
        frame[frame["name"] == what].pivot_table(index="step", columns=["layer", "unit"], values="value").to_numpy()
        for what in ("offset", "deactivation_rate")
    )
    found = []
    for unit in np.flatnonzero((rate[-1] == 1) & (rate[0] < 1)):
        last = np.flatnonzero(rate[:, unit] < 1).max()
        living = offset[last, rate[last] < 1]
        found.append((offset[last, unit], float((living < offset[last, unit]).mean())))
    return found


found = np.array([pair for run in dying.values() for pair in before_death(run)])
print(f"{len(found)} units died; their offsets four steps or less before: median {np.median(found[:, 0]):.2f}")
print(f"median share of living units that stood lower: {np.median(found[:, 1]):.1%}, worst {found[:, 1].max():.1%}")
assert len(found) >= 3
assert np.median(found[:, 0]) < -2
assert np.median(found[:, 1]) < 0.05

# %%
frame = dying["seed 0"].frame("elimination")
offset, rate = (
    frame[frame["name"] == what].pivot_table(index="step", columns=["layer", "unit"], values="value")
    for what in ("offset", "deactivation_rate")
)
lost = ((rate.iloc[-1] == 1) & (rate.iloc[0] < 1)).to_numpy()
figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
figure.patch.set_alpha(0.0)
dress(ax)
steps, values = offset.index.to_numpy(), np.clip(offset.to_numpy(), -8, 4)
ax.plot(steps, values[:, ~lost], color=NEUTRAL, alpha=0.15, linewidth=0.7)
ax.plot(steps, values[:, lost], color=palette(4)[3], linewidth=1.4)
ax.axhline(-2.326, color=NEUTRAL, linestyle="--", linewidth=1)
ax.set(xlabel="optimizer steps", ylabel="offset E z / Std z", ylim=(-5, 3))
_ = ax.set_title("The units that end dead (red) are those that sank", loc="left", color=NEUTRAL, fontsize=11)

# %% [markdown]
# Most units do not die out of the blue: they sink to the region in which a Gaussian one would be on for less than a
# percent (below the dashed line). `dead` counts them afterwards; `margin` and `near_dead` say it before. Of a unit that
# one large step throws out, nothing is said: a few of those that died stood in the middle four steps earlier.
# And in the second layer dead is not for good: as long as the first one learns, a unit may be lifted again.
#
# What that costs, `Singularity` counts: the null directions of the Fisher matrix in each hidden layer, for those of its
# units that look worst, beside what is known of each of them alone predicts.

# %%
_ = nl.plot.singularity(dying["seed 0"])

# %%
for run in dying.values():
    singular = run.frame("singularity")
    last = singular[(singular["step"] == singular["step"].max()) & (singular["layer"] != "")]
    wide = last.pivot_table(index="layer", columns="name", values="value", sort=False)
    print(run.header["name"])
    print(wide[["parameters", "units", "dead", "regular", "predicted", "nullity", "forced"]].astype(int))
    assert (wide["dead"] > 0).any()
    assert (wide["nullity"] >= wide["predicted"]).all()
    assert (wide["nullity"] - wide["predicted"] <= 0.05 * wide["parameters"]).all()

# %% [markdown]
# Nearly every direction that is lost is lost to units that are off, for all images or for almost all of them: the count
# from single units is the count of the whole. Batch norm would have kept them: the same network with it, at the same
# learning rate, has its lowest unit far above the line.

# %%
with_norm = {
    name: train(
        nl.models.MLP(digits.shape, 10, norm=norm, seed=0), f"compared {name}", [nl.probes.Elimination()],
        every=46, lr=0.1, epochs=2,
    )
    for name, norm in (("none", None), ("batch_norm", "batch_norm"))
}  # fmt: skip
_ = nl.plot.elimination(with_norm)

# %%
lowest = {name: nl.plot.elimination_data(run)["offset"].min() for name, run in with_norm.items()}
dead = {name: int(nl.plot.elimination_data(run)["dead"].sum()) for name, run in with_norm.items()}
print("lowest offsets:", {name: f"{value:.2f}" for name, value in lowest.items()}, "dead:", dead)
assert dead["none"] > dead["batch_norm"] == 0
assert lowest["batch_norm"] > -2.326 > lowest["none"]
