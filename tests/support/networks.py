"""The six networks on which bit-identity is promised, and data for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Whole(nn.Module):
    """A network behind a forward of its own: dynamo passes over ``nn.Sequential`` when it is compiled in place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def conv_batch_norm() -> nn.Module:
    block = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *block, nn.Flatten(), nn.Linear(48, 3))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 8, batch_first=True, num_layers=2, dropout=0.1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.cell(x.view(-1, 3, 4))[0])[:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.view(-1, 3, 4)).flatten(1))


def spectral_norm() -> nn.Module:
    """The legacy form (a hook that rebinds ``weight``) and the new one (a parametrization) in one network."""
    legacy = nn.utils.spectral_norm(nn.Linear(12, 16))
    modern = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 3))
    return nn.Sequential(legacy, nn.ReLU(), modern)


NETWORKS = {
    "mlp": mlp,
    "conv_batch_norm": conv_batch_norm,
    "dropout": dropout,
    "lstm": LSTM,
    "attention": Attention,
    "spectral_norm": spectral_norm,
}


def batch(n: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=generator), torch.randint(0, 3, (n,), generator=generator)
