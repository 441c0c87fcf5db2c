"""What stochastic synapses, quaternions and high-dimensional memory are said to do, tried on small data; one table.

Three seeds, medians with all three values, and under each experiment which of its claims hold on the medians.
``python benchmarks/stochastic_and_quaternion.py`` runs the three experiments, or those named: ``rotation``, ``color``,
``memory``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import math
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.data import Batches, digits
from normlens.models.few_shot import draw_episode, episode_accuracy, episode_loss
from normlens.models.quaternion_autoencoder import CAE, QCAE, as_quaternions, chroma
from normlens.models.weight_layers import conv, linear
from normlens.nn.weighted import NSMLinear, entropy_of_samples, sampling
from normlens.nn.weighted.key_value_memory import Quantize

SEEDS = (0, 1, 2)
ANGLES = (0, 15, 30, 45, 60, 90)
NOISES = (0.0, 0.5, 1.0, 2.0, 4.0)
PASSES, EPOCHS = 100, 15
STEPS, COLORED = 600, 32
EPISODES, TRIALS = 150, 100
MEASURED = "accuracy, 5-way 5-shot"
KEYS: dict[str, Quantize | None] = {"real": None, "bipolar": "bipolar", "binary": "binary"}
Row = tuple[str, str, float]


def binarized(images: Tensor) -> Tensor:
    """Write dark pixels as 1 and light ones as -1, flat."""
    return torch.where(images.flatten(1) >= 0.5, 1.0, -1.0)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Turn images about their middle, bilinear, with zeros around them."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def sampling_machine(seed: int, generator: torch.Generator) -> nn.Module:
    """Train 64-100-100-10 with stochastic synapses on digits, the last layer plain."""
    data, weights = digits(), torch.Generator().manual_seed(seed)
    first = NSMLinear(64, 100, generator=weights)
    model = nn.Sequential(first, NSMLinear(100, 100, generator=weights), linear(100, 10, bias=True, generator=weights))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = Batches(*data.train, batch_size=64, seed=seed)
    for _ in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            with sampling(model, generator):
                loss = F.cross_entropy(model(binarized(images)), labels)
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def rotation(seed: int) -> list[Row]:
    """Entropy of the mean prediction of rotated test digits, the part that is noise, the accuracy, the ones alone."""
    noise = torch.Generator().manual_seed(100 + seed)
    with torch.enable_grad():
        model = sampling_machine(seed, noise)
    images, labels = digits().test
    rows: list[Row] = []
    for angle in ANGLES:
        inputs = binarized(rotated(images, angle))
        with sampling(model, noise):
            passes = torch.stack([model(inputs).softmax(1) for _ in range(PASSES)])
        entropy = entropy_of_samples(passes)
        accuracy = float((passes.mean(0).argmax(1) == labels).double().mean())
        values = [float(entropy.total.mean()), float(entropy.mutual_information.mean()), accuracy]
        values.append(float(entropy.total[labels == 1].mean()))
        names = ("entropy, nats", "mutual information, nats", "accuracy", "entropy of the ones, nats")
        rows += [(f"NSM, digits rotated by {angle}°", n, v) for n, v in zip(names, values, strict=True)]
    return rows


def blocks(count: int, generator: torch.Generator) -> Tensor:
    """Draw images of 4 x 4 colored blocks of 4 x 4 pixels, components uniform in [0, 1]."""
    return torch.rand(count, 3, 4, 4, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)


def trained_on(gray: Tensor, model: nn.Module, *, first: int = 0) -> nn.Module:
    """Reproduce gray images by Adam, in the channels from ``first`` on."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(model(gray)[:, first:], gray[:, first:]).backward()
        optimizer.step()
    return model


def color(seed: int) -> list[Row]:
    """Error of the reconstruction of gray and of colored images, in units of what there is to reconstruct."""
    generator = torch.Generator().manual_seed(seed)
    gray = blocks(COLORED, generator).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    images = blocks(COLORED, generator)
    whole = trained_on(as_quaternions(gray), QCAE(seed=seed))
    imaginary = trained_on(as_quaternions(gray), QCAE(seed=seed), first=1)
    real = trained_on(gray, CAE(seed=seed))
    variance = (gray - gray.mean()).square().mean()

    @torch.no_grad()
    def errors(call: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
        output, wanted = chroma(call(images)), chroma(images)
        error = float((output - wanted).square().sum() / wanted.square().sum())
        kept = float((output * wanted).sum() / wanted.square().sum())
        return float((call(gray) - gray).square().mean() / variance), error, kept

    found = {
        "QCAE": errors(lambda x: whole(as_quaternions(x))[:, 1:]),
        "QCAE, real part left out of the loss": errors(lambda x: imaginary(as_quaternions(x))[:, 1:]),
        "CAE": errors(real),
    }
    names = ("gray error / variance", "chroma error / chroma", "share of the chroma kept")
    rows = [(model, n, v) for model, values in found.items() for n, v in zip(names, values, strict=True)]
    return [*rows, ("QCAE / CAE", "ratio of chroma errors", found["QCAE"][1] / found["CAE"][1])]


def controller(seed: int) -> nn.Module:
    """Return a small convolutional network with keys of 512 components."""
    weights = torch.Generator().manual_seed(seed)
    return nn.Sequential(
        conv(1, 16, bias=True, generator=weights), nn.ReLU(), nn.MaxPool2d(2),
        conv(16, 32, bias=True, generator=weights), nn.ReLU(), nn.Flatten(),
        linear(512, 512, bias=True, generator=weights),
    )  # fmt: skip


def memory(seed: int) -> list[Row]:
    """Accuracy of five-way five-shot recall of the digits 5 to 9 by keys that were trained on 0 to 4."""
    (images, labels), generator = digits().train, torch.Generator().manual_seed(seed)
    known, embed = labels < 5, controller(seed)
    optimizer = torch.optim.Adam(embed.parameters(), lr=1e-3)
    for _ in range(EPISODES):
        episode = draw_episode(images[known], labels[known], ways=5, shots=5, queries=8, generator=generator)
        optimizer.zero_grad()
        episode_loss(embed, episode).backward()
        optimizer.step()
    new = images[~known], labels[~known]
    trials = [draw_episode(*new, ways=5, shots=5, queries=8, generator=generator) for _ in range(TRIALS)]
    rows: list[Row] = []
    for name, quantize in KEYS.items():
        for std in NOISES:
            noise = torch.Generator().manual_seed(7)
            found = [episode_accuracy(embed, e, quantize=quantize, noise_std=std, generator=noise) for e in trials]
            rows.append((f"memory, {name} keys, noise {std:g}", MEASURED, statistics.mean(found)))
    return rows


Medians = dict[tuple[str, str], float]
Verdict = tuple[str, bool, str]


def said_of_rotation(medians: Medians) -> list[Verdict]:
    """Whether entropy rises with the angle, for all digits and for the ones."""
    verdicts: list[Verdict] = []
    for measured in ("entropy, nats", "entropy of the ones, nats"):
        values = [medians[f"NSM, digits rotated by {angle}°", measured] for angle in ANGLES]
        shown = " ".join(f"{value:.2f}" for value in values)
        for last in (3, 5):
            rises = all(a < b for a, b in pairwise(values[: last + 1]))
            verdicts.append((f"{measured}: rises at every step from 0° to {ANGLES[last]}°", rises, shown))
        verdicts.append((f"{measured}: above that of 0° at every angle", min(values[1:]) > values[0], shown))
    return verdicts


def said_of_color(medians: Medians) -> list[Verdict]:
    """Whether quaternions know colors from gray alone, and real numbers do not."""
    error, kept = "chroma error / chroma", "share of the chroma kept"
    of_q, of_r = medians["QCAE", error], medians["CAE", error]
    return [
        ("QCAE reconstructs color after gray alone: error below 0.1", of_q < 0.1, f"{of_q:.4f}"),
        ("CAE does not: error above 0.5", of_r > 0.5, f"{of_r:.4f}"),
        (
            "CAE returns gray: keeps below 0.05 of the chroma",
            abs(medians["CAE", kept]) < 0.05,
            f"{medians['CAE', kept]:.4f}",
        ),
    ]


def said_of_memory(medians: Medians) -> list[Verdict]:
    """Whether keys keep their accuracy where noise is as large as a component, and twice that."""
    verdicts: list[Verdict] = []
    accuracy = {name: [medians[f"memory, {name} keys, noise {std:g}", MEASURED] for std in NOISES] for name in KEYS}
    for name in KEYS:
        for at in (2, 3):
            share = accuracy[name][at] / accuracy[name][0]
            said = f"{name} keys keep 95 % of their accuracy at noise {NOISES[at]:g}"
            verdicts.append((said, share >= 0.95, f"{share:.3f}"))
    bipolar, real = accuracy["bipolar"][3], accuracy["real"][3]
    said = f"bipolar keys are no worse than real ones at noise {NOISES[3]:g}"
    return [*verdicts, (said, bipolar >= real, f"{bipolar:.3f} against {real:.3f}")]


EXPERIMENTS: dict[str, tuple[Callable[[int], list[Row]], Callable[[Medians], list[Verdict]]]] = {
    "rotation": (rotation, said_of_rotation),
    "color": (color, said_of_color),
    "memory": (memory, said_of_memory),
}


def main(names: list[str]) -> None:
    """Print the table."""
    began = time.process_time()
    print("| what | measured | median | seeds 0, 1, 2 |")
    print("|---|---|---|---|")
    for name in names or list(EXPERIMENTS):
        experiment, said = EXPERIMENTS[name]
        medians: Medians = {}
        for runs in zip(*(experiment(seed) for seed in SEEDS), strict=True):
            what, measured, _ = runs[0]
            values = [value for _, _, value in runs]
            medians[what, measured] = statistics.median(values)
            listed = ", ".join(f"{value:.4f}" for value in values)
            print(f"| {what} | {measured} | {medians[what, measured]:.4f} | {listed} |", flush=True)
        for claim, holds, numbers in said(medians):
            print(f"| **claim, on medians** | {claim} | **{'holds' if holds else 'does NOT hold'}** | {numbers} |")
    print(f"\n{time.process_time() - began:.0f} s of processor time, one thread, torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])
