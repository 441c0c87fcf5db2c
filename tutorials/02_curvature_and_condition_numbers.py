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
# # Curvature and condition numbers
#
# "Batch norm improves the conditioning." Of which matrix, over which eigenvalues, at which tolerance? This tutorial
# gives the sentence a meaning on a network small enough to know the whole answer, and then checks it.

# %%
import math
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor, nn

import normlens as nl
from normlens.curvature import (
    TOLERANCES,
    DenseOperator,
    activation_condition,
    condition_number,
    eigsh,
    empirical_fisher,
    fisher,
    gauss_newton,
    gauss_newton_spectrum,
    hessian,
    null_directions,
)

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests: narrower matrices, one seed
WIDTH = 12 if FAST else 24

# %% [markdown]
# ## What is the condition number of a matrix that is singular and indefinite?
#
# A Hessian of a network has eigenvalues of both signs and many zeros, so $\lambda_{max}/\lambda_{min}$ is
# meaningless. What is left is the ratio of magnitudes over what counts as not zero,
#
# $$\kappa^*(\tau) = \max|\lambda| \,/\, \min\{|\lambda| : |\lambda| > \tau\max|\lambda|\},$$
#
# and it depends on the tolerance $\tau$. A matrix with known eigenvalues shows how:

# %%
toy = DenseOperator(torch.diag(torch.tensor([4.0, 1.0, -2.0, 1e-3, 1e-7, 0.0, 0.0], dtype=torch.float64)))
for tolerance in (1e-12, 1e-6, 1e-2):
    answer = condition_number(toy, tolerance=tolerance)
    print(f"{answer}: {answer.nullity} count as zero, {answer.negative} negative")
assert condition_number(toy, tolerance=1e-12).nullity == 2
assert math.isclose(condition_number(toy, tolerance=1e-6).value, 4000)

# %% [markdown]
# No tolerance is wrong; a number without its tolerance is. `curve` has the number at all of `TOLERANCES`. And some
# questions have no answer: in float32 an eigenvalue of $10^{-12}\lambda_{max}$ is rounding. Then it refuses.

# %%
try:
    condition_number(DenseOperator(toy.dense().float()), tolerance=1e-12)
    refused = False
except ValueError as error:
    refused = True
    print(error)
assert refused

# %% [markdown]
# ## Count the zeros before measuring them
#
# The network: 64-24-24-10 with tanh, with batch norm or without, in float64, on real handwritten digits.

# %%
digits = nl.data.digits()
images, labels = digits.train[0].flatten(1).double(), digits.train[1]
cross_entropy = nn.CrossEntropyLoss()


def make_network(*, norm: bool, seed: int, width: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    make_norm = nn.BatchNorm1d if norm else lambda _: nn.Identity()
    return nn.Sequential(
        nn.Linear(64, width), make_norm(width), nn.Tanh(),
        nn.Linear(width, width), make_norm(width), nn.Tanh(), nn.Linear(width, 10),
    ).double()  # fmt: skip


def train(model: nn.Module, epochs: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in epochs:
        for x, y in digits.loader(64, seed=epoch):
            loss = cross_entropy(model(x.flatten(1).double()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def risk_of(model: nn.Module, x: Tensor, y: Tensor) -> nl.EmpiricalRisk:
    return nl.EmpiricalRisk(model, cross_entropy, (x, y), mode="train")


network = make_network(norm=True, seed=0)
train(network, range(2))

# %% [markdown]
# Three reasons make a direction exactly flat, for any weights: a bias that batch norm subtracts again (24 + 24), the
# weights of a pixel that no image inks (3 x 24), and one vector added to the weights of all ten classes, which the
# softmax does not see (24 + 1). 48 + 72 + 25 = 145.

# %%
null = null_directions(risk_of(network, images, labels))
print(f"{len(null.labels)} null directions among {null.columns.shape[0]} parameters: {null.counts}")
assert null.counts == {"dead input": 72, "bias before normalization": 48, "softmax shift": 25}

# %% [markdown]
# Is that all of them? The Hessian has 2506 rows: form it, and look at every eigenvalue. To save time on every third
# image, which leaves a few more pixels dark, 24 weights each; `EVERY = 1` takes all, and finds the 145.

# %%
EVERY = 3
x, y = images[::EVERY], labels[::EVERY]
if WIDTH != 24:
    network = make_network(norm=True, seed=0, width=WIDTH)
    train(network, range(2))
risk = risk_of(network, x, y)
predicted = len(null_directions(risk).labels)
of_hessian = condition_number(hessian(risk), tolerance=1e-12)
print(f"{len(x)} images: {predicted} null directions predicted, {of_hessian.nullity} zero eigenvalues found")
print(f"Hessian: {of_hessian}, {of_hessian.negative} negative eigenvalues")
assert of_hessian.nullity == predicted

# %% [markdown]
# ## Hessian, Gauss-Newton, Fisher
#
# The Hessian is $J^\top SJ$ plus a term with the curvature of the network itself, weighted by the residuals. The
# Gauss-Newton matrix is $J^\top SJ$ alone: it has no negative eigenvalue when the loss is convex in the outputs, and
# more null directions, because it only asks whether the *outputs* move:
#
# * one per unit before a batch norm: the scale of its weights and $\gamma$ undo each other (48);
# * a pixel inked in one image has 24 weights, which move the 9 outputs of that image that a softmax sees: 15 of them
#   are idle. When few images share several rare pixels, what counts is how many of the weights find an output of
#   their own: a maximum flow from pixels (24 each) to the images that ink them (9 each).
#
# Away from a minimum the Hessian is not flat along these.


# %%
def idle_weights(inked: np.ndarray) -> int:
    """Weights of the first layer beyond the outputs they can move; inked is (images, pixels), boolean."""
    inked = inked[:, inked.any(0)]
    n, pixels = inked.shape
    capacity = np.zeros((pixels + n + 2, pixels + n + 2), dtype=np.int32)  # source, pixels, images, sink
    capacity[0, 1 : pixels + 1] = WIDTH
    capacity[1 : pixels + 1, pixels + 1 : -1] = WIDTH * inked.T
    capacity[pixels + 1 : -1, -1] = 9
    return WIDTH * pixels - maximum_flow(csr_matrix(capacity), 0, pixels + n + 1).flow_value


idle = idle_weights((x != 0).numpy())
of_gauss_newton = condition_number(gauss_newton(risk), tolerance=1e-12)
print(f"{predicted} + {2 * WIDTH} + {idle} predicted, {of_gauss_newton.nullity} zero eigenvalues found")
print(f"Gauss-Newton: {of_gauss_newton}, {of_gauss_newton.negative} negative eigenvalues")
assert of_gauss_newton.nullity == predicted + 2 * WIDTH + idle
assert of_gauss_newton.negative == 0

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.loglog(TOLERANCES, of_hessian.curve, "o-", label="Hessian")
axes.loglog(TOLERANCES, of_gauss_newton.curve, "s-", label="Gauss-Newton")
axes.loglog(TOLERANCES, [1 / t for t in TOLERANCES], color="#767676", linestyle=":", label="1/tolerance")
axes.set(xlabel="tolerance, relative to the largest eigenvalue", ylabel="condition number")
axes.set_title("Flat where there is a gap in the spectrum; on the dotted line it is the tolerance")
legend = axes.legend()

# %% [markdown]
# Where the curve is flat, the number belongs to the matrix. Where it lies on the dotted line, eigenvalues are dense
# around the tolerance, and what is reported is one over the number you typed.
#
# For the cross-entropy of a softmax the Fisher matrix *is* the Gauss-Newton matrix. The Fisher matrix by sampled
# labels comes closer with more samples. The "empirical Fisher", with the data's own labels, is another matrix.


# %%
def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


probes = torch.randn(
    sum(p.numel() for p in network.parameters()), 8, generator=torch.Generator().manual_seed(0)
).double()
exact = gauss_newton(risk) @ probes
print(f"exact Fisher      {distance(fisher(risk) @ probes, exact):.1e} from Gauss-Newton")
sampled = {k: distance(fisher(risk, "mc", samples=k) @ probes, exact) for k in (1, 16)}
for k, d in sampled.items():
    print(f"{k:2d} sampled labels {d:.2f}")
print(f"empirical Fisher  {distance(empirical_fisher(risk) @ probes, exact):.2f}")
print(f"Hessian           {distance(hessian(risk) @ probes, exact):.2f}")
assert distance(fisher(risk) @ probes, exact) < 1e-12
assert sampled[16] < sampled[1]

# %% [markdown]
# Where the network itself has no curvature, all three are one matrix: softmax regression is linear in its weights.

# %%
linear = risk_of(nn.Linear(64, 10).double(), x, y)
dense = [operator.dense() for operator in (hessian(linear), gauss_newton(linear), fisher(linear))]
print(f"softmax regression: {distance(dense[0], dense[1]):.1e} and {distance(dense[2], dense[1]):.1e}")
assert max(distance(dense[0], dense[1]), distance(dense[2], dense[1])) < 1e-12

# %% [markdown]
# ## Every eigenvalue of Gauss-Newton without forming it
#
# $J^\top SJ$ shares its nonzero eigenvalues with $S^{1/2}JJ^\top S^{1/2}$, which has a row per sample and class. With
# 64 images that is 640 instead of 2506 rows, however large the network is. Each sample loses one to the softmax, so
# the rank is 9 x 64. The dense matrix agrees.

# %%
FEW = 32 if FAST else 64
few = risk_of(network, x[:FEW], y[:FEW])
spectrum = gauss_newton_spectrum(few)
by_gram = condition_number(spectrum, tolerance=1e-10)
by_dense = condition_number(gauss_newton(few), tolerance=1e-10)
print(f"rank {spectrum.rank} of {len(spectrum.values)} rows; {by_gram}; {by_dense}")
print(f"relative difference {abs(by_gram.value / by_dense.value - 1):.1e}")
assert spectrum.rank == 9 * FEW
assert by_gram.nullity == by_dense.nullity
assert math.isclose(by_gram.value, by_dense.value, rel_tol=1e-6)

# %% [markdown]
# ## What does batch norm do to it?
#
# Train both networks on the same batches and measure both on the same 128 images at the same step. The Gauss-Newton
# matrix has rank 9 x 128 in all of them, and no eigenvalue within is taken for zero: $\kappa^*$ here depends on no
# tolerance. The sharpness $\lambda_{max}$ of the Hessian is measured by Lanczos on all images.

# %%
SEEDS = (0,) if FAST else (0, 1, 2)
EPOCHS = (0, 2, 10) if FAST else (0, 1, 2, 5, 10)
kappa: dict[bool, list[list[float]]] = {True: [], False: []}
sharp: dict[bool, list[list[float]]] = {True: [], False: []}
print("seed epoch  norm   loss   lambda_max(H)   lambda_max(G)   kappa*(G)")
for seed in SEEDS:
    for norm in (True, False):
        model, done = make_network(norm=norm, seed=seed), 0
        kappa[norm].append([])
        sharp[norm].append([])
        for epoch in EPOCHS:
            train(model, range(done, epoch))
            done = epoch
            everything, probe = risk_of(model, images, labels), risk_of(model, images[:128], labels[:128])
            sharpness = float(eigsh(hessian(everything), 1).values[0])
            spectrum = gauss_newton_spectrum(probe)
            condition = condition_number(spectrum, tolerance=1e-12)
            assert condition.nullity == spectrum.parameters - 9 * 128
            kappa[norm][-1].append(condition.value)
            sharp[norm][-1].append(sharpness)
            print(f"{seed:4d} {epoch:5d}  {'batch' if norm else 'none ':5s}  {float(everything.loss()):.3f}"
                  f"  {sharpness:12.2f}  {condition.lambda_max:14.2f}     {condition.value:.1e}")  # fmt: skip

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for norm, color, name in ((True, "C0", "batch norm"), (False, "C1", "no norm")):
    for i, values in enumerate(kappa[norm]):
        axes.semilogy(EPOCHS, values, "o-", color=color, label=name if i == 0 else None)
axes.set(xlabel="epoch", ylabel="condition number of Gauss-Newton")
axes.set_title("Same data, same steps; one line per seed")
legend = axes.legend()

# %% [markdown]
# Read the table without the slogan. At initialization batch norm does *not* flatten the loss: its $\lambda_{max}$ is
# the larger one, of both matrices. After ten epochs the order has turned for the Hessian on all images, and not for
# the Gauss-Newton matrix on 128 of them. And $\kappa^*$ grows during training with and without batch norm. What batch
# norm does here is lift the small end of the spectrum: its $\kappa^*$ is the smaller one at every step measured. The
# networks are compared at the same step and not at the same loss, and the one with batch norm is ahead.

# %%
ratio = torch.tensor(kappa[False]) / torch.tensor(kappa[True])
print(f"kappa* without batch norm / with: from {float(ratio.min()):.0f} to {float(ratio.max()):.0f}")
sharper = torch.tensor(sharp[True]) / torch.tensor(sharp[False])
print(
    f"lambda_max with / without: {float(sharper[:, 0].min()):.1f} to {float(sharper[:, 0].max()):.1f} at the beginning,"
)
print(f"{float(sharper[:, -1].min()):.1f} to {float(sharper[:, -1].max()):.1f} at the end")
assert bool((ratio > 1).all())
assert bool((sharper[:, 0] > 1).all())
assert bool((sharper[:, -1] < 1).all())

# %% [markdown]
# ## One layer: the condition of its inputs
#
# Why would it? With the rest fixed, the Hessian of one neuron is $\hat H^\top S\hat H$, where $\hat H=[e,H]$ are its
# inputs with a column of ones for the bias. So $\kappa(\hat H)^2$ enters. For least squares it is the whole answer:

# %%
inked = images[:, images.amax(0) > 0]  # a pixel that is never inked has no condition
squares = nl.EmpiricalRisk(nn.Linear(61, 1).double(), nn.MSELoss(), (inked, labels[:, None].double()))
measured, of_inputs = condition_number(hessian(squares), tolerance=1e-12), activation_condition(inked)
print(f"Hessian {measured.value:.6g}, kappa of the inputs squared {of_inputs.raw**2:.6g}")
assert math.isclose(measured.value, of_inputs.raw**2, rel_tol=1e-6)

# %% [markdown]
# Theorem (Lange, Helfrich, Ye 2022): centering never makes $\kappa$ larger, and after dividing by the standard
# deviations it is within $\sqrt{m+1}$ of what the best scaling of the centered columns could do. Check it on the inputs
# of every linear layer, against random scalings.


# %%
def check_theorem(name: str, inputs: Tensor) -> None:
    answer, m = activation_condition(inputs), inputs.shape[1]
    print(f"{name:26s} raw {answer.raw:7.1f}   centered {answer.centered:7.1f}   standardized {answer.normalized:6.1f}")
    assert answer.rank == m + 1  # the theorem asks for full column rank
    assert answer.centered <= answer.raw * (1 + 1e-9)
    generator = torch.Generator().manual_seed(0)
    centered = torch.cat([torch.ones(len(inputs), 1).double(), inputs - inputs.mean(0)], 1)
    for _ in range(20):
        scale = torch.randn(m + 1, generator=generator).exp().double()
        assert answer.normalized <= math.sqrt(m + 1) * float(torch.linalg.cond(centered * scale))


plain = make_network(norm=False, seed=0)
train(plain, range(2))
with torch.no_grad():
    check_theorem("pixels", inked)
    check_theorem("layer 2, no norm", plain[:3](images))
    check_theorem("layer 3, no norm", plain[:6](images))
    check_theorem("layer 2, batch norm", network[:3](images))
    check_theorem("layer 3, batch norm", network[:6](images))

# %% [markdown]
# The pixels are where it pays: they are not centered, and those at the rim hardly vary. The inputs of hidden layers
# behind a tanh are nearly centered already, and little is left to gain. The theorem promises nothing about
# standardized against centered: dividing may make $\kappa$ larger, by at most $\sqrt{m+1}$.
