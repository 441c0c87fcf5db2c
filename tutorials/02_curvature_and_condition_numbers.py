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
import torch
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

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests take a third of the images and one seed

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


def make_network(*, norm: bool, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    make_norm = nn.BatchNorm1d if norm else lambda _: nn.Identity()
    return nn.Sequential(
        nn.Linear(64, 24), make_norm(24), nn.Tanh(), nn.Linear(24, 24), make_norm(24), nn.Tanh(), nn.Linear(24, 10)
    ).double()


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
# Is that all of them? The Hessian has 2506 rows: form it, and look at every eigenvalue.

# %%
x, y = (images[::3], labels[::3]) if FAST else (images, labels)
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
#   are idle; one inked in two images leaves 24 - 18 = 6.
#
# Away from a minimum the Hessian is not flat along these.

# %%
inked_in = (x != 0).sum(0)
idle = 15 * int((inked_in == 1).sum()) + 6 * int((inked_in == 2).sum())
of_gauss_newton = condition_number(gauss_newton(risk), tolerance=1e-12)
print(f"{predicted} + 48 + {idle} predicted, {of_gauss_newton.nullity} zero eigenvalues found")
print(f"Gauss-Newton: {of_gauss_newton}, {of_gauss_newton.negative} negative eigenvalues")
assert of_gauss_newton.nullity == predicted + 48 + idle
assert of_gauss_newton.negative == 0

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.loglog(TOLERANCES, of_hessian.curve, "o-", label="Hessian")
axes.loglog(TOLERANCES, of_gauss_newton.curve, "s-", label="Gauss-Newton")
axes.loglog(TOLERANCES, [1 / t for t in TOLERANCES], color="#767676", linestyle=":", label="1/tolerance")
axes.set(xlabel="tolerance, relative to the largest eigenvalue", ylabel="condition number")
axes.set_title("Flat where there is a gap in the spectrum; on the dotted line it is the tolerance")
axes.legend()

# %% [markdown]
# Where the curve is flat, the number belongs to the matrix. Where it lies on the dotted line, eigenvalues are dense
# around the tolerance, and what is reported is one over the number you typed.
#
# For the cross-entropy of a softmax the Fisher matrix *is* the Gauss-Newton matrix. The Fisher matrix by sampled
# labels comes closer with more samples. The "empirical Fisher", with the data's own labels, is another matrix.


# %%
def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


probes = torch.randn(null.columns.shape[0], 8, generator=torch.Generator().manual_seed(0)).double()
exact = gauss_newton(risk) @ probes
print(f"exact Fisher      {distance(fisher(risk) @ probes, exact):.1e} from Gauss-Newton")
sampled = {k: distance(fisher(risk, "mc", samples=k) @ probes, exact) for k in (1, 16)}
for k, d in sampled.items():
    print(f"{k:2d} sampled labels {d:.2f}")
print(f"empirical Fisher  {distance(empirical_fisher(risk) @ probes, exact):.2f}")
print(f"Hessian           {distance(hessian(risk) @ probes, exact):.2f}")
assert distance(fisher(risk) @ probes, exact) < 1e-12
assert sampled[16] < sampled[1]
