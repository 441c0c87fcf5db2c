"""RNN: a long short-term memory that reads an image as a sequence, row by row or pixel by pixel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from normlens.models.blocks import Placement, needs_bias, placed
from normlens.models.normalization import Norm, make_norm
from normlens.models.recurrence import LSTMRecurrence, OverTime, Reading, as_sequence, sequence_shape
from normlens.models.shapes import check_classes, check_image, check_widths
from normlens.models.weight_layers import linear
from normlens.nn.weighted.recurrent_batch_norm import BatchNormLSTM

__all__ = ["RNN"]


class RNN(nn.Module):
    """A long short-term memory on the rows or pixels of an image, with a linear head on its last state.

    Before the gates (``pre-activation``) it is ``input, norm, lstm``: a linear map of each time step, normalized, then
    the recurrence (C. Laurent et al., ICASSP 2016). After them (``post-activation``) it is ``input, lstm, norm``. A
    norm stands at every time step by itself, see :class:`normlens.models.recurrence.OverTime`; the linear map has a
    bias unless a norm follows it. With ``"recurrent_batch_norm"`` the whole is one ``lstm``,
    :class:`normlens.nn.weighted.recurrent_batch_norm.BatchNormLSTM`, with normalized recurrence and cells and
    statistics of each step apart (momentum 0.1 for short runs; pixel by pixel with its noise before the first step,
    which is drawn from the global random state in train mode). Shapes: ``(N, C, H, W)`` to ``(N, classes)``.

    Args:
        input_shape: the shape ``(C, H, W)`` of one image.
        classes: the number of outputs.
        norm: ``"recurrent_batch_norm"`` or BatchNormLSTM itself, a module name of :mod:`normlens.nn`, a class or
            function called as ``norm(num_features)``, or None.
        placement: whether the norm stands before or after the gates.
        seed: decides all weights; the weights do not depend on ``norm``.
        reading: ``"rows"``, ``H`` steps of ``C W``, or ``"pixels"``, ``H W`` steps of ``C``.
        units: the number of cells.

    Raises:
        ValueError: an unknown norm, placement or reading, sizes that are not positive, or ``recurrent_batch_norm``
            after the gates. A norm that does not take features without space is refused in the first call.
    """

    own_norms: ClassVar[tuple[str, ...]] = ("recurrent_batch_norm",)
    """Names that this model takes as ``norm`` beside those of :mod:`normlens.nn`."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        norm: Norm = "batch_norm",
        placement: Placement = "pre-activation",
        seed: int = 0,
        reading: Reading = "rows",
        units: int = 64,
    ) -> None:
        super().__init__()
        check_classes(classes)
        check_widths((units,))
        steps, features = sequence_shape(check_image(input_shape), reading)
        self.reading = reading
        generator = torch.Generator().manual_seed(seed)
        weight = linear(features, 4 * units, bias=needs_bias(norm, placement), generator=generator)
        recurrence = LSTMRecurrence(units, generator=generator)
        head = linear(units, classes, bias=True, generator=generator)
        if norm in self.own_norms or norm is BatchNormLSTM:
            _refuse_behind(placement)
            self.lstm: nn.Module = _normalized(weight, recurrence, steps, reading, generator)
        else:
            layer = make_norm(norm, 4 * units if placement == "pre-activation" else units)
            before, after = placed(None if layer is None else OverTime(layer), placement)
            parts = (("input", weight), ("norm", before), ("lstm", recurrence), ("norm", after))
            for name, part in parts:
                if part is not None:
                    self.add_module(name, part)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Read the images and name the classes after the last step.

        Args:
            x: ``(N, C, H, W)``.
        """
        hidden = as_sequence(x, self.reading)
        if isinstance(self.lstm, BatchNormLSTM):
            hidden = self.lstm(hidden.transpose(0, 1))[0].transpose(0, 1)
        else:
            for part in list(self.children())[:-1]:
                hidden = part(hidden)
        logits: Tensor = self.head(hidden[:, -1])
        return logits


def _refuse_behind(placement: Placement) -> None:
    if placement != "pre-activation":
        raise ValueError(
            "recurrent_batch_norm stands inside the recurrence, before the gates and on the cells; "
            f"got placement {placement!r}: use 'pre-activation'."
        )


def _normalized(
    weight: nn.Linear, recurrence: LSTMRecurrence, steps: int, reading: Reading, generator: torch.Generator
) -> BatchNormLSTM:
    """Build the memory with norms inside, beginning with the weights that the one without begins with."""
    lstm = BatchNormLSTM(
        weight.in_features,
        recurrence.units,
        steps,
        generator=generator,
        momentum=0.1,  # not 0.01: runs are short here
        h0_noise=0.1 if reading == "pixels" else 0.0,  # the first pixels are blank in nearly all images
    )
    with torch.no_grad():
        lstm.weight_ih.copy_(weight.weight)
        lstm.weight_hh.copy_(recurrence.weight_hh)
    return lstm
