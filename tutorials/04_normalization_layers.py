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
# # Normalization layers: a family tree
#
# Two dozen papers, one skeleton. A layer takes a statistic over some of the axes of $(N, C, \text{space})$, removes it,
# and gives something back to be learned. This tutorial sorts the layers by that, shows as numbers which of them are the
# same, puts batch sizes of 2 and 128 to the test on real digits, changes the normalization of a trained network, and
# writes a new layer.

# %%
import copy
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import normlens as nl
from normlens.nn.base import Normalization
from normlens.nn.convert import convert
from normlens.nn.functional import affine, promote, sample_dims

FAST = os.environ.get("NORMLENS_FAST") == "1"  # the tests: fewer seeds and passes over the images
SEEDS = (0,) if FAST else (0, 1, 2)
EPOCHS = 3 if FAST else 5
EVERY = 2 if FAST else 1

generator = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# %% [markdown]
# ## What is pooled, what is removed, what is recovered
#
# | layer | statistics pool | removed | given back |
# |---|---|---|---|
# | `BatchNorm` | batch and space, per channel | mean, scale | gain and bias per channel |
# | `GhostBatchNorm`, `BatchRenorm` | the same, of part of the batch; corrected by the past | mean, scale | the same |
# | `MeanOnlyBatchNorm` | batch and space, per channel | mean | bias |
# | `DecorrelatedBatchNorm`, `IterativeNorm` | batch and space, per group of channels | mean, covariance | gain, bias |
# | `InstanceNorm` | space, per sample and channel | mean, scale | gain, bias |
# | `LayerNorm` | channels and space, per sample | mean, scale | gain, bias |
# | `GroupNorm` | a group of channels and space, per sample | mean, scale | gain, bias |
# | `RMSNorm`, `ScaleNorm` | channels and space, per sample | scale | gain; one gain |
# | `FilterResponseNorm` | space, per sample and channel | scale | gain, bias |
# | `BatchChannelNorm` | the batch's, then the group's | both | gain, bias, twice |
# | `SwitchableNorm` | instance, layer and batch, mixed as learned | mean, scale | gain, bias |
# | `DynamicTanh` | nothing | nothing: it squashes | slope, gain, bias |
#
# What a layer removes, it cannot see. So the table can be measured: shift or scale channels or samples of the input,
# each by a number of its own, and look whether the output changes. Zeros are exact invariances, up to rounding; `eps`
# is 0, since only then they hold exactly.

# %%
N, C, SIDE = 8, 8, 6
x = draw(N, C, SIDE, SIDE) * 2 + 1
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "shift channels": lambda x: x + shift_channels,
    "scale channels": lambda x: x * scale_channels,
    "shift samples": lambda x: x + shift_samples,
    "scale samples": lambda x: x * scale_samples,
}
shift_channels, scale_channels = draw(1, C, 1, 1), draw(1, C, 1, 1).exp()
shift_samples, scale_samples = draw(N, 1, 1, 1), draw(N, 1, 1, 1).exp()

exact = partial(dict, eps=0.0, dtype=torch.float64)
LAYERS: dict[str, nn.Module] = {
    "BatchNorm": nl.nn.BatchNorm(C, **exact()),
    "MeanOnlyBatchNorm": nl.nn.MeanOnlyBatchNorm(C, dtype=torch.float64),
    "DecorrelatedBatchNorm": nl.nn.DecorrelatedBatchNorm(C, **exact()),
    "InstanceNorm": nl.nn.InstanceNorm(C, **exact()),
    "LayerNorm": nl.nn.LayerNorm(C, **exact()),
    "GroupNorm": nl.nn.GroupNorm(C, groups=2, **exact()),
    "RMSNorm": nl.nn.RMSNorm(C, **exact()),
    "FilterResponseNorm": nl.nn.FilterResponseNorm(C, **exact()),
    "BatchChannelNorm": nl.nn.BatchChannelNorm(C, groups=2, **exact()),
    "SwitchableNorm": nl.nn.SwitchableNorm(C, **exact()),
    "DynamicTanh": nl.nn.DynamicTanh(C, dtype=torch.float64),
}


def change(layer: nn.Module, how: Callable[[Tensor], Tensor]) -> float:
    """How much the output changes, in units of its own size; from the same state both times."""
    before, after = copy.deepcopy(layer)(x), copy.deepcopy(layer)(how(x))
    return float((after - before).detach().norm() / before.detach().norm())


measured = {name: [change(layer, how) for how in CHANGES.values()] for name, layer in LAYERS.items()}
print(f"{'':22s}" + "".join(f"{name:>16s}" for name in CHANGES))
for name, row in measured.items():
    print(f"{name:22s}" + "".join(f"{value:16.0e}" for value in row))


def invariant(name: str) -> list[bool]:
    return [value < 1e-12 for value in measured[name]]


assert invariant("BatchNorm") == [True, True, False, False]
assert invariant("MeanOnlyBatchNorm") == [True, False, False, False]
assert invariant("InstanceNorm") == [True, True, True, True]
assert invariant("LayerNorm") == invariant("GroupNorm") == [False, False, True, True]
assert invariant("RMSNorm") == [False, False, False, True]
assert invariant("FilterResponseNorm") == [False, True, False, True]
assert invariant("DynamicTanh") == [False] * 4

# %% [markdown]
# The rows say what a layer is good for. Batch norm forgets the scale of every channel, so the scale of the weights
# before it does not matter. Layer norm forgets the brightness and contrast of every sample, and lets a channel die that
# is always small. Instance norm forgets both, and with them how strong a feature is. Whitening shifts as batch norm
# does, but scaling *single* channels turns the basis in which it whitens: it is not batch norm with more removed.

# %% [markdown]
# ## The same layer under two names
#
# At its ends nearly every layer is another one. The numbers are largest differences of the outputs, in float64.

# %%
one_sample = draw(N, C)  # (N, C), no space


def double(cls: Callable[..., nn.Module], **settings: object) -> nn.Module:
    return cls(C, dtype=torch.float64, **settings)


IDENTITIES: dict[str, tuple[nn.Module, nn.Module, Tensor]] = {
    "group norm in one group = layer norm":
        (double(nl.nn.GroupNorm, groups=1), double(nl.nn.LayerNorm), x),
    "group norm in C groups = instance norm":
        (double(nl.nn.GroupNorm, groups=C), double(nl.nn.InstanceNorm), x),
    "scale norm = RMS norm with one gain":
        (double(nl.nn.ScaleNorm), double(nl.nn.RMSNorm), x),
    "ghost batches of the whole batch = batch norm":
        (double(nl.nn.GhostBatchNorm, ghost_size=N), double(nl.nn.BatchNorm), x),
    "batch renorm with r = 1, d = 0 is batch norm":
        (double(nl.nn.BatchRenorm, r_max=1.0, d_max=0.0, eps=1e-5), double(nl.nn.BatchNorm), x),
    "whitening in groups of one = batch norm":
        (double(nl.nn.DecorrelatedBatchNorm, group_size=1, eps=1e-5), double(nl.nn.BatchNorm), x),
    "divisive norm, all channels, sigma 0 = layer norm":
        (double(nl.nn.DivisiveNorm, sum_window=None, sup_window=None, sigma=0.0), double(nl.nn.LayerNorm, eps=0.0),
         one_sample),
}  # fmt: skip
for name, (one, other, inputs) in IDENTITIES.items():
    difference = float((one(inputs) - other(inputs)).detach().abs().max())
    print(f"{name:52s}{difference:8.0e}")
    assert difference < 1e-12, name

ratio = (double(nl.nn.InstanceEnhancementBatchNorm)(x) / double(nl.nn.BatchNorm)(x)).detach()
print(f"instance enhancement at its start is batch norm times {float(ratio.mean()):.5f}, the sigmoid of -1")
assert torch.allclose(ratio, torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64)).expand_as(ratio), atol=1e-10)

# %% [markdown]
# ## Batches of 2 and of 128
#
# Batch norm is a function of the batch. With two samples and no space it knows of each channel which sample has more,
# and nothing else: every output is +1 or -1. Layer and group norm never see the batch. The network is an MLP on
# handwritten digits; both batch sizes see as many images, the learning rate grows with the batch. Group norm gets 8
# groups of 8: in groups of two channels a vector is all signs again, and nothing would be learned.

# %%
pair = nl.nn.BatchNorm(C, **exact())(one_sample[:2]).detach()
print("batch norm of two samples:", pair[:, :4].round().int().tolist())
assert torch.allclose(pair.abs(), torch.ones_like(pair))

digits = nl.data.digits()
NORMS: dict[str, str | Callable[[int], nn.Module]] = {
    "batch_norm": "batch_norm",
    "batch_renorm": partial(nl.nn.BatchRenorm, momentum=0.05, warmup_steps=20, r_max_steps=100, d_max_steps=100),
    "layer_norm": "layer_norm",
    "group_norm": partial(nl.nn.GroupNorm, groups=8),
    "rms_norm": "rms_norm",
}
RATES = {2: 0.005, 128: 0.1}


def train(name: str, batch_size: int, seed: int) -> nn.Module:
    model = nl.models.MLP((1, 8, 8), 10, norm=NORMS[name], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATES[batch_size], momentum=0.9)
    images, labels = (part[::EVERY] for part in digits.train)
    order = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=order).split(batch_size):
            if len(rows) < 2:
                continue  # a batch of one has no variance
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(digits.test[0]).argmax(1) == digits.test[1]).double().mean())


found: dict[tuple[str, int], Tensor] = {}
print(f"{'test accuracy':14s}" + "".join(f"{f'batches of {size}':>22s}" for size in RATES))
for name in NORMS:
    for size in RATES:
        found[name, size] = torch.tensor([accuracy(train(name, size, seed)) for seed in SEEDS])
    row = (found[name, size] for size in RATES)
    print(f"{name:14s}" + "".join(f"{f'{v.mean():.3f} ({v.min():.3f}-{v.max():.3f})':>22s}" for v in row))

loss_of = {name: float((found[name, 128] - found[name, 2]).mean()) for name in NORMS}
assert loss_of["batch_norm"] > 0.05
assert loss_of["batch_norm"] > 2 * max(abs(loss_of[name]) for name in ("layer_norm", "group_norm", "rms_norm"))
for name in ("layer_norm", "group_norm", "rms_norm"):
    assert float(found[name, 2].mean()) > float(found["batch_norm", 2].mean())

# %% [markdown]
# Batch norm trains on signs and is then asked about numbers: the running statistics of eval mode are another function.
# What looks at single samples does not care. Batch renorm is between the two: it trains on what eval mode will do, as
# soon as its limits allow.

# %% [markdown]
# ## Another normalization in a trained network
#
# `convert` puts another layer in the place of each normalization, PyTorch's own ones too. Weights, running statistics
# and settings go over as far as they mean something there, and it says what does not.

# %%
trained = train("batch_norm", 128, seed=0)
before = accuracy(trained)
for target in ("batch_renorm", "layer_norm"):
    model = copy.deepcopy(trained)
    print(convert(model, target))
    print(f"accuracy {before:.3f} before, {accuracy(model):.3f} after\n")
    if target == "batch_renorm":  # the same running statistics: in eval mode the same function but for eps
        assert abs(accuracy(model) - before) < 0.02

# %% [markdown]
# Batch renorm took all of it and answers as before. Layer norm has the weights, but normalizes by other statistics: it
# is a start for further training, not the same network.

# %% [markdown]
# ## A layer of your own, in one file
#
# Divide every sample by the mean of its magnitudes: root mean square norm with the other mean. The class names its
# settings, keeps each as an attribute, says its formula, and spells out the rest in elementary operations, so that all
# derivatives follow.


# %%
class MeanAbsoluteNorm(Normalization):
    """Divide each sample by the mean magnitude over all channels and space, then scale channels.

    ``y = weight_c x / (mean_n + eps)``; ``mean_n`` is the mean of ``|x|`` over ``(C, *spatial)`` of sample ``n``.

    Shapes: ``(N, C, *spatial)`` to the same. Source: this tutorial.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-6,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, has_bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        wide = promote(x)  # statistics are never taken in half precision
        mean = wide.abs().mean(sample_dims(x), keepdim=True)
        return affine(wide / (mean + self.eps), self.weight, None).to(x.dtype)


layer = MeanAbsoluteNorm(C, **exact())
print(layer)
print("changes:", {name: f"{change(layer, how):.0e}" for name, how in CHANGES.items()})
assert change(layer, CHANGES["scale samples"]) < 1e-12
assert torch.autograd.gradcheck(layer, one_sample.clone().requires_grad_())
assert torch.autograd.gradgradcheck(layer, one_sample.clone().requires_grad_())

model = nl.models.MLP((1, 8, 8), 10, norm=MeanAbsoluteNorm, seed=0)
optimizer = torch.optim.SGD(model.parameters(), lr=RATES[128], momentum=0.9)
for step in range(11 * 5):
    rows = torch.arange(128) + 128 * (step % 11)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(digits.train[0][rows]), digits.train[1][rows]).backward()
    optimizer.step()
print(f"test accuracy after five passes: {accuracy(model):.3f}")
assert accuracy(model) > 0.85

# %% [markdown]
# Saved as `normlens/nn/mean_absolute_norm.py`, with `__all__ = ["MeanAbsoluteNorm"]` and a line in
# `normlens/nn/__init__.py`, it is `--norm mean_absolute_norm` on the command line, and the contract tests find it:
# shapes, dtypes, half precision, two derivatives in every mode, state dict, batches of one, compilation. What they
# cannot know is what the layer *means*; that goes into `tests/nn/test_mean_absolute_norm.py`.
