"""The parts of a recurrent network: an image as a sequence, a recurrence on given gates, a norm at every time step."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from normlens import catalog
from normlens.nn.sequence_batch_norm import SequenceBatchNorm
from normlens.nn.weighted.recurrent_batch_norm import draw_orthogonal_, lstm_step

__all__ = ["LSTMRecurrence", "OverTime", "Reading", "as_sequence", "sequence_shape"]

Reading: TypeAlias = Literal["rows", "pixels"]
"""``rows``: a time step is a row of the image. ``pixels``: a time step is a pixel."""


def sequence_shape(image: tuple[int, int, int], reading: Reading) -> tuple[int, int]:
    """Return how many time steps an image ``(C, H, W)`` has, and how many features each of them.

    Args:
        image: its shape.
        reading: row by row, ``H`` steps of ``C W``, or pixel by pixel, ``H W`` steps of ``C``.

    Raises:
        ValueError: an unknown reading.
    """
    channels, height, width = image
    if reading == "rows":
        return height, channels * width
    if reading == "pixels":
        return height * width, channels
    raise ValueError(
        f"reading must be 'rows' (a time step is a row) or 'pixels' (a time step is a pixel), got {reading!r}: "
        "choose one of the two."
    )


def as_sequence(images: Tensor, reading: Reading) -> Tensor:
    """Lay images ``(N, C, H, W)`` out as sequences ``(N, T, features)``, from the top left, line by line.

    Args:
        images: a batch of them.
        reading: see :func:`sequence_shape`.
    """
    _, channels, height, width = images.shape
    steps, features = sequence_shape((channels, height, width), reading)
    return images.movedim(1, 2 if reading == "rows" else 3).reshape(-1, steps, features)


class LSTMRecurrence(nn.Module):
    """What is left of a long short-term memory behind its input's part: ``h_t`` of given ``a_t``.

    ``(i, f, g, o) = a_t + weight_hh h + (0, 1, 0, 0)``, ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h' = sigmoid(o)
    tanh(c')`` from ``h = c = 0``. The one on the forget gates lets cells remember from the start, whatever made ``a_t``
    (F. Gers, J. Schmidhuber and F. Cummins, Neural Computation 2000); it is a constant, since ``a_t`` has the bias.
    Elementary operations in every step: right in all derivative modes on every device, as cuDNN's is not.
    Shapes: ``(N, T, 4 units)`` to ``(N, T, units)``.

    Args:
        units: the number of cells.
        generator: the source of ``weight_hh``, orthogonal for each gate.
    """

    def __init__(self, units: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.units = units
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units))
        draw_orthogonal_(self.weight_hh, generator=generator)

    def forward(self, given: Tensor) -> Tensor:
        """Read the sequence.

        Args:
            given: ``a_t`` for all steps, ``(N, T, 4 units)``.
        """
        h = c = given.new_zeros(len(given), self.units)
        remember = torch.cat([given.new_zeros(self.units), given.new_ones(self.units), given.new_zeros(2 * self.units)])
        states = []
        for step in given.unbind(1):
            c, gate = lstm_step(step + remember + nn.functional.linear(h, self.weight_hh), c)
            h = gate * torch.tanh(c)
            states.append(h)
        return torch.stack(states, 1)

    def extra_repr(self) -> str:
        """Show the number of units."""
        return f"{self.units}"


class OverTime(nn.Module):
    """A normalization at every time step of ``(N, T, C)``.

    Layers that know of time get the sequence, as ``(N, C, T)``. All others get the steps as so many samples, ``(N T,
    C)``: layer norm and its relatives then treat every step by itself, as their papers do for recurrent networks, and
    batch norm pools the steps, which is sequence-wise normalization (Laurent et al. 2016).

    Args:
        layer: the normalization.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, T, C)``.

        Args:
            x: the sequences.

        Raises:
            ValueError: the layer does not take features without space; the message names those that do.
        """
        if isinstance(self.layer, SequenceBatchNorm):
            over_time: Tensor = self.layer(x.transpose(1, 2))
            return over_time.transpose(1, 2)
        try:
            at_each: Tensor = self.layer(x.flatten(0, 1))
        except ValueError as error:
            raise ValueError(
                f"a recurrent network normalizes features without space, (samples and steps, {x.shape[2]}): {error}. "
                f"Norms that fit: {', '.join([*_fitting(), 'recurrent_batch_norm'])}."
            ) from error
        return at_each.reshape(x.shape)


def _fitting() -> list[str]:
    """List the names of the layers that take ``(N, C)``."""
    return [name for name in catalog.names("normlens.nn") if _takes_features(name)]


def _takes_features(name: str) -> bool:
    layer: nn.Module = catalog.load("normlens.nn", name)(16).eval()
    try:
        layer(torch.ones(2, 16))
    except ValueError:
        return False
    return True
