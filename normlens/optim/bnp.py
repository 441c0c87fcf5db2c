"""Batch normalization preconditioning: the step of a batch-normalized network, without a layer in the network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from normlens.optim.input_statistics import InputMoments, pooled, variances
from normlens.optim.layer_gradients import precondition_gradients
from normlens.optim.preconditioning import InputPreconditioner
from normlens.optim.weight_layers import WeightLayer

__all__ = ["BNP"]


class BNP(InputPreconditioner):
    r"""Make every step that of layers with batch-normalized inputs; the forward pass stays as it is.

    .. math:: G_W \leftarrow \frac{1}{q^2}(G_W - G_b\mu^\top)\operatorname{diag}(1/\tilde\sigma^2), \quad
              G_b \leftarrow \frac{1}{q^2}G_b - G_W\mu, \quad
              \tilde\sigma^2 = \sigma^2 + \epsilon_1\max_j\sigma_j^2 + \epsilon_2

    The second takes the new :math:`G_W`. That is :math:`PP^\top` times the gradient, with the P of
    :func:`normlens.curvature.bnp_condition`: with the batch's own statistics, q = 1 and no floors, a step of SGD is
    that of a network with batch norm in front of the layer, its statistics held fixed, folded back. Exact for linear
    layers and convolutions without zero padding; with it the border sees zeros that centering does not move, and the
    step is an approximation.

    The moments are of the inputs, per channel: of a linear layer ``(*, C)`` over all but the last axis, of a
    convolution over samples and positions. They are of passes in train mode with gradients enabled, and of all those
    that the step is from. :math:`q^2 = \max(m/N, 1)` with the fan-in m and the number N of outputs of each unit
    (samples times output positions). The running moments are those of the exponentially weighted inputs, with the
    variance between batches in it: without that, :math:`\sigma^2` would vanish at batch size 1, as each batch's own
    does.

    Another optimizer takes the changed gradient for its gradient. Weight decay is added by the optimizer, after this.
    Initially mu = 0 and sigma^2 = 1, so that the first 1 / (1 - rho) steps are under-preconditioned, unless
    ``bias_correction`` weighs the batches as if there were nothing before them. In one process.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of its parameters.
        rho: how much of the running moments stays, for ``statistics="running"``.
        eps1: of the largest variance of the layer's channels, added to each; protects from dead inputs.
        eps2: added to each variance.
        q: ``"paper"`` as above, or q itself; 1 for none.
        statistics: the running ones, or those of the batch alone.
        between_batches: whether the running variance has the variance between batches in it; the paper's has not.
        bias_correction: see above.
        centering: False for layers without a bias: mu is 0 then, and the gradient is scaled alone.

    Raises:
        ValueError: a setting is out of its range; a layer has no bias that the optimizer steps, but with
            ``centering=False``; weights are tied or there are none; several processes train together. In a step: a
            layer has a gradient of its weight and none of its bias, or no pass in train mode went through it.

    Source: Lange, Helfrich, Ye, JMLR 23(72), 2022, algorithm 1; its constants as far as remembered.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float = 0.99,
        eps1: float = 1e-2,
        eps2: float = 1e-4,
        q: Literal["paper"] | float = "paper",
        statistics: Literal["running", "batch"] = "running",
        between_batches: bool = True,
        bias_correction: bool = False,
        centering: bool = True,
    ) -> None:
        _check_settings(rho, (eps1, eps2), q, statistics)
        self.rho = rho if statistics == "running" else 0.0
        self.eps1, self.eps2, self.q = eps1, eps2, q
        self.between_batches, self.bias_correction, self.centering = between_batches, bias_correction, centering
        super().__init__(model, optimizer, variances, centering=centering)

    def blend(self, running: InputMoments | None, batch: InputMoments, updates: int) -> InputMoments:
        """Return the running moments with a new batch in them: its share is 1 - rho.

        With bias correction it is (1 - rho) / (1 - rho^updates), which is 1 for the first batch.

        Args:
            running: the moments so far; None stands for mean 0 and variance 1.
            batch: those of the batch.
            updates: how many batches came, this one included.
        """
        share = 1 - self.rho
        if self.bias_correction and self.rho:
            share /= 1 - self.rho**updates
        if share == 1:
            return batch
        if running is None:
            running = batch._replace(mean=torch.zeros_like(batch.mean), spread=torch.ones_like(batch.mean))
        return pooled(running, batch, share, between=self.between_batches)

    def precondition(self, layer: WeightLayer, moments: InputMoments) -> None:
        """Precondition the gradients of a layer.

        Args:
            layer: the layer.
            moments: the running mean and variance, and how many outputs the last batch had.
        """
        variance = moments.spread
        assert variance is not None
        floored = torch.add(variance, variance.max(), alpha=self.eps1).add_(self.eps2)
        scale = self._scale(layer.weight, moments.outputs)
        precondition_gradients(layer, moments.mean if self.centering else None, floored.reciprocal_(), scale)

    def _scale(self, weight: Tensor, outputs: int) -> float:
        """Return 1 / q^2; the fan-in is what a unit has weights."""
        if self.q == "paper":
            return min(outputs * len(weight) / weight.numel(), 1.0)
        return float(self.q**-2)


def _check_settings(rho: float, eps: tuple[float, float], q: object, statistics: object) -> None:
    if not 0 <= rho < 1:
        raise ValueError(f"rho must be in [0, 1); got {rho}; 0.99 is the default, 0 takes each batch's statistics")
    if min(eps) < 0:
        raise ValueError(f"eps1 and eps2 must not be negative; got {eps}; 1e-2 and 1e-4 are the defaults")
    if q != "paper" and not (isinstance(q, int | float) and q > 0):
        raise ValueError(f'q must be "paper" or a positive number; got {q!r}; 1 leaves it out')
    if statistics not in {"running", "batch"}:
        raise ValueError(f'statistics must be "running" or "batch"; got {statistics!r}; choose one of them')
