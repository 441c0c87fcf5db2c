"""What is done to a trained CNN on digits: calibration under weight noise, batch statistics at prediction time.

Three seeds each, medians. ``python inference_on_digits.py`` prints both tables (about two minutes on two cores).
"""

from __future__ import annotations

import platform
import statistics
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlens.data import digits
from normlens.data.corruption import blur, brightness, contrast, gaussian_noise, rotation
from normlens.inference.calibration import calibrate_batchnorm
from normlens.inference.prediction_time import prediction_time_batchnorm
from normlens.inference.weight_noise import WeightNoise
from normlens.models import CNN

SEEDS = (0, 1, 2)
NOISES = (0.05, 0.1, 0.15, 0.2, 0.3)
SEVERITY = 3
DATA = digits()


def trained(seed: int, epochs: int = 15) -> nn.Module:
    """Return a CNN with batch norm, trained and in eval mode."""
    model = CNN(DATA.shape, len(DATA.classes), norm="batch_norm", seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for x, y in DATA.loader(64, seed=seed):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor, size: int = 100) -> float:
    """Return the accuracy, in batches of a size; a smaller last one is left out."""
    whole = len(y) // size * size
    with torch.no_grad():
        batches = zip(x[:whole].split(size), y[:whole].split(size), strict=True)
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in batches)
    return right / whole


def middle(values: list[float]) -> str:
    """Return the median of the seeds in percent."""
    return f"{100 * statistics.median(values):.1f}"


def calibration_table(models: list[nn.Module]) -> None:
    """Print the accuracy under noise of the weights, before and after calibration on 512 training images."""
    x, y = DATA.test
    images = DATA.train[0][:512]
    clean = statistics.median(accuracy(model, x, y) for model in models)
    print(f"\ntest accuracy in % under weight noise (gaussian, times the largest weight), clean {100 * clean:.1f}\n")
    print("| noise | as trained | calibrated | share of the loss restored |")
    print("|---|---|---|---|")
    for scale in NOISES:
        before, after = [], []
        for seed, model in zip(SEEDS, models, strict=True):
            state = {key: value.clone() for key, value in model.state_dict().items()}
            with WeightNoise(model, "gaussian", scale, generator=torch.Generator().manual_seed(seed)):
                before.append(accuracy(model, x, y))
                calibrate_batchnorm(model, images)
                after.append(accuracy(model, x, y))
            model.load_state_dict(state)
        lost = clean - statistics.median(before)
        share = (statistics.median(after) - statistics.median(before)) / lost if lost > 0 else float("nan")
        print(f"| {scale} | {middle(before)} | {middle(after)} | {share:.2f} |", flush=True)


def prediction_time_table(models: list[nn.Module]) -> None:
    """Print the accuracy with stored and with batch statistics, clean and corrupted, in large and in tiny batches."""
    x, y = DATA.test
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "clean": x, "gaussian noise": gaussian_noise(x, SEVERITY, generator=generator), "blur": blur(x, SEVERITY),
        "contrast": contrast(x, SEVERITY), "brightness": brightness(x, SEVERITY), "rotation": rotation(x, SEVERITY),
    }  # fmt: skip
    print(f"\ntest accuracy in %, corruptions at severity {SEVERITY}, statistics of training or of the batch at hand\n")
    print("| images | stored | of 100 images | of 2 images |")
    print("|---|---|---|---|")
    for name, images in inputs.items():
        cells = []
        for size, on_batch in ((100, False), (100, True), (2, True)):
            values = []
            for model in models:
                with prediction_time_batchnorm(model) if on_batch else nullcontext():
                    values.append(accuracy(model, images, y, size))
            cells.append(middle(values))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print both tables."""
    print(f"{platform.machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; {len(SEEDS)} seeds, medians")
    models = [trained(seed) for seed in SEEDS]
    calibration_table(models)
    prediction_time_table(models)


if __name__ == "__main__":
    main()
