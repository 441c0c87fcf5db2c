"""Mean-normalized stochastic gradient: the step that a network would take whose layers see centered inputs."""

from __future__ import annotations

import torch
from torch import nn

from normlens.optim.input_statistics import InputMoments, means, pooled
from normlens.optim.layer_gradients import precondition_gradients
from normlens.optim.preconditioning import InputPreconditioner
from normlens.optim.weight_layers import WeightLayer

__all__ = ["MeanNormalization"]


class MeanNormalization(InputPreconditioner):
    r"""Make every step that of layers with centered inputs, :math:`z = W(x - m) + \tilde b`; the forward is kept.

    .. math:: G_W \leftarrow G_W - G_b m^\top, \quad G_b \leftarrow G_b - G_W m, \quad
              m \leftarrow (1 - \alpha)m + \alpha\,\operatorname{mean}(x)

    The second takes the new :math:`G_W`. That is :math:`[G_W\ G_b]P` with
    :math:`P = [[I, -m], [-m^\top, 1 + m^\top m]]`, positive definite with determinant 1: a descent direction even with
    an old m. With m = 0 it is the plain step.

    Around plain SGD the step is that of the centered network, exactly, for linear layers and for convolutions without
    zero padding; with it the border sees zeros that centering does not move, and the step is an approximation. Another
    optimizer takes the changed gradient for its gradient; momentum is the centered network's as long as m stands still.
    Weight decay is added by the optimizer, after this. An input ``(N, T, C)`` of a linear layer is pooled over N and T,
    that of a convolution over samples and positions, per channel. Statistics are of passes in train mode with gradients
    enabled, all those that the step is from. In one process.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of its parameters.
        momentum: alpha, the weight of a new batch; the first one counts whole.

    Raises:
        ValueError: ``momentum`` is not in (0, 1]; a layer has no bias that the optimizer steps; weights are tied or
            there are none; several processes train together. In a step: a layer has a gradient of its weight and none
            of its bias, or no pass in train mode went through it.

    Source: Wiesler, Richard, Schlüter, Ney, ICASSP 2014, pp. 180-184.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, momentum: float = 0.01) -> None:
        if not 0 < momentum <= 1:
            raise ValueError(
                f"momentum must be in (0, 1]; got {momentum}; 0.01 is the default, 1 takes each batch's mean"
            )
        self.momentum = momentum
        super().__init__(model, optimizer, means)

    def blend(self, running: InputMoments | None, batch: InputMoments, updates: int) -> InputMoments:
        """Return the moving average of the means, which begins with the first batch's.

        Args:
            running: the moments so far.
            batch: those of the batch.
            updates: how many batches came.
        """
        return batch if running is None else pooled(running, batch, self.momentum)

    def precondition(self, layer: WeightLayer, moments: InputMoments) -> None:
        """Center the gradients of a layer.

        Args:
            layer: the layer.
            moments: with the running mean.
        """
        precondition_gradients(layer, moments.mean)
