"""The derivatives of the outputs by the incoming and outgoing weights of some units of a hidden layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normlens.optim.weight_layers import WeightLayer
from normlens.probes.unit_derivatives import LayerDerivatives, patches
from normlens.run.capture import Activation

__all__ = ["HiddenLayer", "block_jacobian", "nearest_units", "outgoing_jacobian"]


@dataclass(frozen=True)
class HiddenLayer:
    """A hidden layer of units between two weight layers, on one batch in float64.

    Attributes:
        writer: its rows are the incoming weights.
        reader: its columns are the outgoing weights.
        activation: of the nonlinearity.
        written: derivatives at the output of the writer.
        read: derivatives at the output of the reader.
        bias: whether the writer has a trainable bias.
        norm: "" for none between the writer and the nonlinearity, else the concept's name.
        pooled: whether the reader takes one value per unit, pooled over space.
    """

    writer: WeightLayer
    reader: WeightLayer
    activation: Activation
    written: LayerDerivatives
    read: LayerDerivatives
    bias: bool
    norm: str
    pooled: bool

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.writer.weight)

    @property
    def incoming(self) -> int:
        """Parameters of a unit in the writer, d or d + 1 with its bias."""
        return self.writer.weight[0].numel() + self.bias

    @property
    def outgoing(self) -> int:
        """Parameters of a unit in the reader."""
        return self.reader.weight.numel() // self.units

    def weights_in(self, units: Tensor) -> Tensor:
        """Return the incoming weights of units, (k, d), with the bias last."""
        rows = self.writer.weight.detach().flatten(1)[units]
        bias = self.writer.bias
        return rows if not self.bias or bias is None else torch.cat([rows, bias.detach()[units, None]], 1)

    def weights_out(self, units: Tensor) -> Tensor:
        """Return the outgoing weights of units, (k, outputs of the reader, places)."""
        rows = len(self.reader.weight)
        columns: Tensor = self.reader.weight.detach().reshape(rows, self.units, -1).movedim(1, 0)
        return columns[units]

    def seen(self) -> Tensor:
        """Return what each unit sees at each position, (N, P, d), with a one last for the bias."""
        found = patches(self.writer, self.written.inputs)
        return found if not self.bias else torch.cat([found, torch.ones_like(found[..., :1])], 2)

    def shown(self, units: Tensor) -> Tensor:
        """Return what the reader sees of units, (N, positions, k, places)."""
        inputs = self.read.inputs
        if isinstance(self.reader, torch.nn.Linear):
            return inputs.reshape(len(inputs), -1, self.units, inputs.shape[-1] // self.units)[:, :, units]
        rows = patches(self.reader, inputs[:, units])
        return rows.reshape(*rows.shape[:2], len(units), -1)


def block_jacobian(layer: HiddenLayer, units: Tensor) -> Tensor:
    """Return the derivatives of the outputs by the units' weights: (rows, units (incoming + outgoing)), units in order.

    A row for each sample and direction of its outputs.

    Args:
        layer: the hidden layer.
        units: their indices.
    """
    seen = layer.seen()
    rows = [torch.einsum("npu,npd->nud", into[:, :, units], seen) for into in layer.written.slopes]
    return torch.cat([torch.cat(rows), outgoing_jacobian(layer, units)], 2).flatten(1)


def outgoing_jacobian(layer: HiddenLayer, units: Tensor) -> Tensor:
    """Return the derivatives of the outputs by the units' outgoing weights: (rows, units, outgoing).

    Args:
        layer: the hidden layer.
        units: their indices.
    """
    shown = layer.shown(units)
    return torch.cat([torch.einsum("npo,npuk->nuok", out, shown).flatten(2) for out in layer.read.slopes])


def nearest_units(layer: HiddenLayer, most: int) -> Tensor:
    """Return the indices of the units that look nearest to a singularity, ascending.

    By the smallest of: their activations' size, their weights' norms, each over the largest of the layer, and the
    distance of the incoming weights from a multiple of another unit's.

    Args:
        layer: the hidden layer.
        most: how many to take at most.
    """
    every = torch.arange(layer.units, device=layer.writer.weight.device)
    rows = layer.weights_in(every)
    sizes = [layer.activation.output_samples.square().mean((0, 1)).sqrt(), rows.norm(dim=1)]
    sizes.append(layer.weights_out(every).flatten(1).norm(dim=1))
    near = [size / size.max().clamp_min(torch.finfo(size.dtype).tiny) for size in sizes]
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    near.append(1 - (unit @ unit.T).abs().fill_diagonal_(0).amax(1))
    return torch.stack(near).amin(0).argsort(stable=True)[:most].sort().values
