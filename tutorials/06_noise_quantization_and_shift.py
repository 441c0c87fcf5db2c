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
# # Noise, quantization and shift
#
# A network with batch norm is trained, and its statistics are written down. Then it is put on a chip whose memory is
# noisy, shown images in bad light, or cast into integers, and the statistics are those of another world. This tutorial
# takes them again, from the noisy network (calibration) or from the very batch that is predicted (prediction-time batch
# norm), rounds batch norm to integers without a wrong bit, and ends with a network that wants its weights noisy.

# %%
import copy
import math
import os
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import normlens as nl
from normlens.data.corruption import blur, brightness, contrast, gaussian_noise, rotation
from normlens.data.image_operations import turn
from normlens.inference.calibration import calibrate_batchnorm
from normlens.inference.fixed_point import quantize_affine
from normlens.inference.folding import eval_affine, fold_batchnorm
from normlens.inference.prediction_time import prediction_time_batchnorm
from normlens.inference.quantization import QuantizedBatchNorm
from normlens.inference.weight_noise import WeightNoise
from normlens.models.weight_layers import linear
from normlens.nn.weighted.blank_out import sampling
from normlens.nn.weighted.predictive_entropy import PredictiveEntropy, entropy_of_samples
from normlens.nn.weighted.stochastic_synapse import NSMLinear
from normlens.plot.style import NEUTRAL, dress, palette

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests: fewer seeds and passes over the images
SEEDS = (0,) if FAST else (0, 1, 2)

digits = nl.data.digits()
images, labels = digits.test
sample = digits.train[0][:512]


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, seed: int) -> nn.Module:
    for _ in range(epochs):
        for x, y in digits.loader(64, seed=seed):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def train(seed: int) -> nn.Module:
    model = nl.models.CNN(digits.shape, 10, norm="batch_norm", seed=seed)
    return fit(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), 8 if FAST else 15, seed)


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, size: int = len(images)) -> Tensor:
    return torch.cat([model(batch).argmax(1) for batch in x.split(size)])


def accuracy(model: nn.Module, x: Tensor = images, y: Tensor = labels, size: int = len(images)) -> float:
    whole = len(y) // size * size  # a smaller last batch is left out
    return float((answers(model, x[:whole], size) == y[:whole]).double().mean())


def new_axes(width: float = 6.4) -> Axes:
    figure, ax = plt.subplots(figsize=(width, 3.6), layout="constrained")
    figure.patch.set_alpha(0.0)
    dress(ax)
    return ax


models = [train(seed) for seed in SEEDS]
clean = float(np.median([accuracy(model) for model in models]))
print("test accuracy:", ", ".join(f"{accuracy(model):.3f}" for model in models))
assert clean > 0.97

# %% [markdown]
# ## Noise on the weights
#
# `WeightNoise` adds to every weight a normal number, `scale` times the largest weight of its layer, inside a `with`
# block; afterwards the weights are what they were, bit by bit. The inputs of the batch norms are moved by it.
# Calibration lets images through the noisy network and takes the statistics again, so these tell how far, in units of
# the old standard deviations.

# %%
model = copy.deepcopy(models[0])
norms = {name: module for name, module in model.named_modules() if isinstance(module, nl.nn.BatchNorm)}
with WeightNoise(model, "gaussian", 0.1, generator=torch.Generator().manual_seed(0)):
    old = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    noisy = accuracy(model)
    calibrate_batchnorm(model, sample)
    calibrated = accuracy(model)
moved = {}
for name, norm in norms.items():
    mean, var = old[name]
    moved[name] = float(((norm.running_mean - mean).square() / var).mean().sqrt())
    factor = (norm.running_var / var).log().mean().exp()
    print(f"{name}: means moved by {moved[name]:.2f} standard deviations, variances times {factor:.2f}")
print(f"accuracy {accuracy(models[0]):.3f}, with noise {noisy:.3f}, calibrated {calibrated:.3f}")
assert all(shift > 0.2 for shift in moved.values())
assert calibrated > noisy
assert all(torch.equal(p, q) for p, q in zip(model.parameters(), models[0].parameters(), strict=True))

# %% [markdown]
# What is a change of mean and scale of each channel is undone exactly. Take an error of the gain, every filter times a
# factor of its own: with `eps` = 0 and the same images for both, the calibrated network is the old one.

# %%
exact = nl.models.MLP(digits.shape, 10, norm=partial(nl.nn.BatchNorm, eps=0.0)).double()
x = images.double()
calibrate_batchnorm(exact.eval(), x)
before, draw = exact(x).detach(), torch.Generator().manual_seed(0)
with torch.no_grad():
    for block in (exact.block1, exact.block2):
        block.linear.weight.mul_(torch.randn(64, 1, generator=draw, dtype=torch.float64).exp())
wrong = float((exact(x) - before).detach().abs().max())
calibrate_batchnorm(exact, x)
right = float((exact(x) - before).detach().abs().max())
print(f"the outputs are off by {wrong:.1f}, after calibration by {right:.0e}")
assert wrong > 1
assert right < 1e-12

# %% [markdown]
# Noise that is independent for each weight does more than that, and in the head there is no batch norm. So not all
# comes back. Several draws of the noise for each network; the band is the middle half.

# %%
SCALES = (0.05, 0.1, 0.15, 0.2, 0.3)
DRAWS = 3 if FAST else 4


def under_noise(scale: float) -> np.ndarray:
    """Accuracy as trained and calibrated: (draws of all networks, 2)."""
    found = []
    for number, trained in enumerate(models):
        for draw in range(DRAWS):
            model = copy.deepcopy(trained)
            generator = torch.Generator().manual_seed(DRAWS * number + draw)
            with WeightNoise(model, "gaussian", scale, generator=generator):
                found.append((accuracy(model), accuracy(calibrate_batchnorm(model, sample))))
    return np.array(found)


noise = np.stack([under_noise(scale) for scale in SCALES])  # (scales, draws, 2)
low, middle, high = np.quantile(noise, (0.25, 0.5, 0.75), axis=1)
restored = (middle[:, 1] - middle[:, 0]) / (clean - middle[:, 0])
ax = new_axes()
for column, (name, color) in enumerate(zip(("as trained", "calibrated"), palette(2), strict=True)):
    ax.fill_between(SCALES, low[:, column], high[:, column], color=color, alpha=0.2, linewidth=0)
    ax.plot(SCALES, middle[:, column], color=color, marker="o", markersize=4, label=name)
ax.axhline(clean, color=NEUTRAL, linestyle="--", linewidth=1)
ax.set(xlabel="noise of the weights, relative to the largest", ylabel="test accuracy", ylim=(0, 1.02))
_ = ax.legend(frameon=False, labelcolor=NEUTRAL)

# %%
for scale, (trained, again), share in zip(SCALES, middle, restored, strict=True):
    print(f"noise {scale:4.2f}: {trained:.3f} as trained, {again:.3f} calibrated, {share:4.0%} of the loss restored")
first = int(np.argmax(clean - middle[:, 0] >= 0.2))
print(f"the first noise to cost 20 points is {SCALES[first]}: {restored[first]:.0%} of them come back")
assert restored[first] > 0.5
assert restored[-1] < 0.4
assert middle[-1, 1] < 0.5

# %% [markdown]
# Calibration needs no labels and no training, and gives back more than half where the noise is bearable. Where it
# drowns the weights, there is nothing to be calibrated for.
#
# Statistics of several batches are pooled with the variance *between* the batches. Averaging the variances within them
# is not the same, and worst where it is tempting: with images that come sorted.

# %%
order = digits.train[1][:512].argsort(stable=True)
sorted_batches = [(batch.double(), None) for batch in sample[order].split(64)]
whole, pooled = (
    calibrate_batchnorm(exact, data).block1.norm.running_var.clone() for data in (sample.double(), sorted_batches)
)
within = torch.stack([exact.block1[:1](batch.flatten(1)).detach().var(0) for batch, _ in sorted_batches]).mean(0)
print(f"variances of the first batch norm: pooled within {float((pooled / whole - 1).abs().max()):.0e},"
      f" averaged {float(1 - (within / whole).mean()):.0%} too small")  # fmt: skip
assert torch.allclose(pooled, whole, rtol=1e-12)
assert float(1 - (within / whole).mean()) > 0.2

# %% [markdown]
# ## Images in another light
#
# Prediction-time batch norm takes the statistics of the batch that is predicted. An affine change of a channel at the
# input of a norm, contrast and brightness say, is then removed exactly. Here a norm alone, which does what it does in
# training; then five corruptions of the images, in batches of 100.

# %%
norm = nl.nn.BatchNorm(3, eps=0.0, dtype=torch.float64).eval()
x = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
gain, offset = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([0.4, 2.0, 0.1], [0.3, -1.0, 5.0]))
with torch.no_grad():
    stored = float((norm(gain * x + offset) - norm(x)).abs().max())
    with prediction_time_batchnorm(norm):
        own = float((norm(gain * x + offset) - norm(x)).abs().max())
        predicted = norm(x)
    as_in_training = float((predicted - norm.train()(x)).abs().max())
print(f"the change moves the output by {stored:.1f}; with the statistics of the batch by {own:.0e}")
assert stored > 1
assert own < 1e-12
assert as_in_training < 1e-12

SHOWN = {
    "clean": images,
    "gaussian noise": gaussian_noise(images, 3, generator=torch.Generator().manual_seed(0)),
    "blur": blur(images, 3),
    "contrast": contrast(images, 3),
    "brightness": brightness(images, 3),
    "rotation": rotation(images, 3),
}


def median_accuracy(x: Tensor, y: Tensor = labels, size: int = 100, blend: float = 1.0) -> float:
    """Of all networks, with a share of the batch's statistics: 0 for the stored ones."""
    found = []
    for model in models:
        with prediction_time_batchnorm(model, blend):
            found.append(accuracy(model, x, y, size))
    return float(np.median(found))


table = {name: (median_accuracy(x, blend=0.0), median_accuracy(x)) for name, x in SHOWN.items()}
print(f"{'':16s}stored   of the batch")
for name, (stored, own) in table.items():
    print(f"{name:14s}{stored:8.3f}{own:12.3f}")
assert table["contrast"][1] > table["contrast"][0] + 0.4
assert all(table[name][1] > table[name][0] + 0.05 for name in ("blur", "brightness", "rotation"))
assert all(table[name][1] > clean - 0.03 for name in ("contrast", "brightness"))
assert table["blur"][1] > (clean + table["blur"][0]) / 2
assert table["rotation"][1] < (clean + table["rotation"][0]) / 2
assert table["gaussian noise"][0] > clean - 0.03
assert abs(table["clean"][1] - table["clean"][0]) < 0.02

# %% [markdown]
# Contrast and brightness are changes of the statistics, and all but undone. Blur is, to the most part; rotation only in
# some. The noise on the pixels had done little harm, and clean images gain nothing.
#
# The price is that the batch must be large, and mixed. A blend with the stored statistics is a way between.

# %%
SIZES = (2, 4, 10, 40, 100)
shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
by_size = {
    name: [median_accuracy(SHOWN[name][shuffled], labels[shuffled], size) for size in SIZES]
    for name in ("clean", "contrast")
}
ax = new_axes()
for (name, found), color in zip(by_size.items(), palette(2), strict=True):
    ax.plot(SIZES, found, color=color, marker="o", markersize=4, label=f"{name}, of the batch")
    ax.axhline(table[name][0], color=color, linestyle="--", linewidth=1, label=f"{name}, stored")
ax.set(xscale="log", xlabel="images in a batch", ylabel="test accuracy", ylim=(0, 1.02))
ax.set_xticks(SIZES, [str(size) for size in SIZES])
ax.minorticks_off()
_ = ax.legend(frameon=False, labelcolor=NEUTRAL)

# %%
one_class = labels.argsort(stable=True)
sorted_accuracy = median_accuracy(images[one_class], labels[one_class], 35)  # an image in ten is of each class
print(f"clean images, stored {table['clean'][0]:.3f}, in batches of 2 {by_size['clean'][0]:.3f},"
      f" in batches of 35 sorted by class {sorted_accuracy:.3f}")  # fmt: skip
half = {name: median_accuracy(SHOWN[name][shuffled], labels[shuffled], 4, blend=0.5) for name in by_size}
for name, found in by_size.items():
    print(f"{name:9s} in batches of 4: stored {table[name][0]:.3f}, half and half {half[name]:.3f}, own {found[1]:.3f}")
assert by_size["clean"][0] < table["clean"][0] - 0.05
assert by_size["contrast"][0] > table["contrast"][0]
assert sorted_accuracy < 0.5
assert all(half[name] > found[1] for name, found in by_size.items())

# %% [markdown]
# ## Batch norm in integers
#
# In eval mode batch norm is $kx+b$ per channel, so it can be folded into the layer before it. Where the layers compute
# in integers, $k$ and $b$ have to be integers as well, over a power of two: $y=(Kx+B+2^{n-1})\gg n$. How large must $n$
# be to round as the real numbers do, for all inputs up to a limit? `quantize_affine` finds out, in exact fractions.
# Rounding $k2^n$ and $b2^n$ is not good enough:

# %%
folded = fold_batchnorm(models[0].block1.conv, models[0].block1.norm)
with torch.no_grad():
    apart = float((folded(images) - models[0].block1.norm(models[0].block1.conv(images))).abs().max())
print(f"folded into the convolution: outputs within {apart:.0e}")
assert apart < 1e-5


def rounded(k: float, b: float, limit: int) -> np.ndarray:
    """What is wanted, for all integers up to the limit; halves round up."""
    values = (Fraction(k) * x + Fraction(b) + Fraction(1, 2) for x in range(-limit, limit + 1))
    return np.array([math.floor(value) for value in values])


def naive(k: float, b: float, limit: int, n: int) -> np.ndarray:
    x = np.arange(-limit, limit + 1)
    return (round(k * 2**n) * x + round(b * 2**n) + (1 << n >> 1)) >> n


k, b, limit = 0.05, 1.31, 255
wanted = rounded(k, b, limit)
best = quantize_affine(k, b, limit)
wrong = {n: int((naive(k, b, limit, n) != wanted).sum()) for n in range(8, 16)}
print(f"found: shift {best.shift}, K = {best.multiplier}, B from {best.offsets[0]} to {best.offsets[1]}")
print(f"naive: K = {round(k * 2**best.shift)}, B = {round(b * 2**best.shift)}; wrong outputs by shift: {wrong}")
assert [best(x) for x in range(-limit, limit + 1)] == wanted.tolist()
assert wrong[best.shift] > 0
assert not quantize_affine(k, b, limit, max_shift=best.shift - 1).exact

# %% [markdown]
# `QuantizedBatchNorm` does that for all channels with one shift. We take the three batch norms of a trained network,
# for inputs and outputs of 8 bits and fewer, and compare with the fractions on every integer that can come.


# %%
class Integer(nn.Module):
    """The norm of a trained network in integers, between a quantizer and its inverse."""

    def __init__(self, norm: nn.Module, inputs: Tensor, bits: int) -> None:
        super().__init__()
        self.limit = 2 ** (bits - 1) - 1
        self.step = float(inputs.abs().max()) / self.limit
        self.out = float(norm(inputs).abs().max()) / self.limit
        self.norm = QuantizedBatchNorm.from_float(norm, self.step, self.out, self.limit, -self.limit, self.limit)

    def forward(self, x: Tensor) -> Tensor:
        integers = (x / self.step).round().clamp(-self.limit, self.limit).long()
        return self.norm(integers).to(x.dtype) * self.out

    def wrong(self, norm: nn.Module) -> tuple[int, int, int]:
        """How many inputs come out wrong, how many would by naive rounding at this shift, how many there are."""
        x = torch.arange(-self.limit, self.limit + 1)[:, None].expand(-1, len(norm.running_mean))
        scale, offset = eval_affine(norm, what="this tutorial")
        pairs = zip((scale * (self.step / self.out)).tolist(), (offset / self.out).tolist(), strict=True)
        wanted, coarse = [], []
        for k, b in pairs:
            wanted.append(rounded(k, b, self.limit).clip(-self.limit, self.limit))
            coarse.append(naive(k, b, self.limit, self.norm.shift).clip(-self.limit, self.limit))
        wanted = np.stack(wanted, 1)
        return int((self.norm(x).numpy() != wanted).sum()), int((np.stack(coarse, 1) != wanted).sum()), wanted.size


lost = {}
with torch.no_grad():
    for bits in (8, 6, 5, 4, 3):
        model, x, checks, shifts = copy.deepcopy(models[0]), sample, [], []
        for name, step in model.named_children():
            if name.startswith("block"):
                norm = step.norm
                step.norm = Integer(norm, step.conv(x), bits)
                checks.append(step.norm.wrong(norm))
                shifts.append(step.norm.norm.shift)
            x = step(x)
        exactly, coarsely, inputs = (sum(column) for column in zip(*checks, strict=True))
        lost[bits] = accuracy(models[0]) - accuracy(model)
        print(f"{bits} bits: shifts {shifts}; of {inputs} inputs {exactly} wrong, {coarsely} by naive rounding;"
              f" accuracy {accuracy(model):.3f}")  # fmt: skip
        assert exactly == 0
        assert coarsely > 0
assert all(abs(lost[bits]) < 0.02 for bits in (8, 6, 5))
assert lost[3] > 0.2

# %% [markdown]
# Not a wrong bit, and five bits are enough for the digits. What is lost with three is lost in the inputs and outputs:
# batch norm does with them exactly what the rounded real numbers would do.

# %% [markdown]
# ## Noise that is wanted
#
# A neural sampling machine has threshold units, and noise on each synapse: in every pass half of them are blank.
# A unit with inputs $z_j=\pm1$ fires with probability $\frac12(1+\mathrm{erf}\,\varphi)$ where $\varphi$ is
# $w\cdot z/\|w\|$ times a gain, plus a bias: the noise grows with the weights, so it normalizes them. Count spikes:

# %%
draw = torch.Generator().manual_seed(0)
layer = NSMLinear(40, 1, generator=draw, dtype=torch.float64)
z = torch.where(torch.rand(1, 40, generator=draw) < 0.5, 1.0, -1.0).double()
PASSES = 40_000


@torch.no_grad()
def spikes(layer: NSMLinear, z: Tensor) -> tuple[float, float]:
    """The share of passes in which the unit fired, and the formula."""
    fired = layer(z.expand(PASSES, -1), draw) > 0
    return float(fired.double().mean()), float(layer.activation_probability(z))


with torch.no_grad():
    layer.bias.fill_(0.8)
    louder = copy.deepcopy(layer)
    louder.weight.mul_(7)
    louder.bias.mul_(7)
counted = {"as it is": (layer, z), "weights times 7": (louder, z), "inputs 0 and 1": (layer, (z + 1) / 2)}
counted = {name: spikes(*case) for name, case in counted.items()}
for name, (share, formula) in counted.items():
    print(f"{name:16s} fired in {share:.4f} of the passes, formula {formula:.4f}")
error = 4 * 0.5 / math.sqrt(PASSES)  # four standard errors
assert all(abs(share - formula) < error for name, (share, formula) in counted.items() if "0" not in name)
assert abs(counted["as it is"][1] - counted["weights times 7"][1]) < 1e-12
assert abs(counted["inputs 0 and 1"][0] - counted["inputs 0 and 1"][1]) > error


# %% [markdown]
# Seven times the weights and the bias are the same unit: the noise has normalized them. It needs inputs of $\pm1$. With
# 0 and 1 only the active inputs are noisy, and the formula is wrong.
#
# A network of such units answers anew in every pass, so it can be asked how sure it is: the entropy of the answer,
# averaged over passes. Part of it is the noise: the mutual information of answer and noise. Train one on digits of -1
# and 1, and turn what it is shown.

# %%
ANGLES = (0, 15, 30, 45, 60, 75, 90)
REPEATS = 20 if FAST else 50


class Spins(nn.Module):
    """Dark pixels as 1, light ones as -1, in a row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.flatten(1) >= 0.5, 1.0, -1.0)


class Answer(NamedTuple):
    entropy: PredictiveEntropy
    right: Tensor


def sampling_machine(seed: int, noise: torch.Generator) -> nn.Module:
    weights = torch.Generator().manual_seed(seed)
    sizes = (64, 100), (100, 100)
    units = (NSMLinear(*size, generator=weights, approx=True) for size in sizes)  # approx: noise of many synapses
    model = nn.Sequential(Spins(), *units, linear(100, 10, bias=True, generator=weights))
    with sampling(model, noise):
        return fit(model, torch.optim.Adam(model.parameters(), lr=3e-3), 10 if FAST else 15, seed)


@torch.no_grad()
def ask(model: nn.Module, x: Tensor, repeats: int) -> Answer:
    passes = torch.stack([model(x).softmax(1) for _ in range(repeats)])
    return Answer(entropy_of_samples(passes), passes.mean(0).argmax(1) == labels)


asked: dict[int, list[Answer]] = {angle: [] for angle in ANGLES}
for seed in SEEDS:
    noise_source = torch.Generator().manual_seed(100 + seed)
    machine = sampling_machine(seed, noise_source)
    with sampling(machine, noise_source):
        for angle in ANGLES:
            asked[angle].append(ask(machine, turn(images, angle), REPEATS))


def median_of(what: Callable[[Answer], Tensor]) -> np.ndarray:
    return np.array([np.median([float(what(answer)) for answer in asked[angle]]) for angle in ANGLES])


CURVES = {
    "entropy [nats]": median_of(lambda answer: answer.entropy.total.mean()),
    "of that, noise [nats]": median_of(lambda answer: answer.entropy.mutual_information.mean()),
    "accuracy": median_of(lambda answer: answer.right.double().mean()),
}
ax = new_axes()
for (name, curve), color in zip(CURVES.items(), palette(3), strict=True):
    ax.plot(ANGLES, curve, color=color, marker="o", markersize=4, label=name)
ax.set(xlabel="rotation of the digits [degrees]", xticks=ANGLES, ylim=(0, 1.02))
_ = ax.legend(frameon=False, labelcolor=NEUTRAL)

# %%
entropy, information, right = CURVES.values()
of_one = median_of(lambda answer: answer.entropy.total[labels == 1].mean())
for angle, *row in zip(ANGLES, entropy, information, of_one, right, strict=True):
    print("{:3d} degrees: entropy {:.2f}, of that noise {:.2f}, of a 1 {:.2f}; accuracy {:.2f}".format(angle, *row))
assert (np.diff(entropy[:3]) > 0.05).all()
assert entropy[3] > 2 * entropy[0]
assert entropy[-1] < 0.8 * entropy[3]
assert of_one[-1] < 0.8 * of_one[3]
assert right[-1] < 0.2

upright = asked[0]
wrong, correct = (
    np.median([float(answer.entropy.total[answer.right == value].mean()) for answer in upright])
    for value in (False, True)
)
still = ask(machine, images, 3).entropy  # nothing draws noise here: every pass is the mean
print(f"upright: entropy {correct:.2f} where the answer is right, {wrong:.2f} where it is wrong")
print(f"without noise the mutual information is {float(still.mutual_information.abs().max()):.0e}")
assert wrong > 2 * correct
assert still.mutual_information.abs().max() < 1e-6

# %% [markdown]
# Upright, the network is unsure where it is wrong. Turned digits make it less sure, at 45 degrees twice as much and
# more. The paper that builds such a machine reports that its entropy rises with the angle; here it does not go on
# rising. Digits on their side are answered with less doubt than those half-way, a 1 like all, while hardly an answer is
# right any more: noise in the synapses does not tell a network what it has never seen.
