"""Projected natural gradient descent: any optimizer, stepping the weights that layers have for whitened inputs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from normlens.optim.input_statistics import InputMoments, InputStatistics, covariances, gathered
from normlens.optim.layer_gradients import check_biases, check_channels, has_gradients
from normlens.optim.transform import Transform
from normlens.optim.weight_layers import weight_layers
from normlens.optim.whitened_layer import WhitenedLayer, turn_momentum
from normlens.optim.whitening_basis import Whitening, WhiteningBasis, whitening_basis

__all__ = ["PRONG"]


class PRONG(Transform):
    r"""Let the optimizer step V and d of layers :math:`V\,U(x - c) + d` with white inputs; the model keeps W and b.

    .. math:: W = VU, \quad b = d - Wc, \quad c = \mu, \quad U = (\Lambda + \epsilon)^{-1/2}E^\top \text{ (pca)}

    with mean and covariance :math:`\mu, E\Lambda E^\top` of the inputs, estimated anew every ``interval`` steps. The
    layers, their parameters and the model's state dict stay what they are: around a step of the optimizer a layer's
    weight, bias and gradients are replaced by V, d and theirs, and after it what V and d moved by is added to W and b.
    So the step is exact for every optimizer, Adam's scales and weight decay too, which act on V; its state is that of V
    and d. A step of plain SGD is :math:`\Delta W = -\eta(G_W - G_b c^\top)U^\top U`,
    :math:`\Delta b = -\eta G_b - \Delta W c`, with pca and zca alike.

    A new basis changes no weight, so the function is the same. It is estimated as soon as ``num_samples`` samples
    were seen: first at the beginning of training, then ``interval`` steps after the last one; until the first the steps
    are plain. Estimating takes samples only from then on, and factors a matrix of the size of the input channels of
    each group, in O(channels^3).

    Of a convolution U and c act on channels, with statistics over samples and positions: smaller by the kernel squared
    than those of patches, and neighboring pixels stay correlated. At a border padded with zeros U does not see what it
    was made for; the change of coordinates is exact all the same. Of an input ``(*, C)`` of a linear layer every row is
    a sample. Statistics are of passes in train mode with gradients enabled that a step is from, in one process.

    The learning rate is that of V: inputs of a variance below 1 become larger, so that it has to be smaller than W's.
    On digits with momentum 0.9 a CNN trains at 0.003, where SGD is slow, and diverges at 0.01.

    No other transform of the same optimizer sees W in its hooks. Where an optimizer fails within its step the model is
    left with V and d; ``remove`` puts W and b back, and so does the next step, which then refuses its gradients.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of its parameters.
        interval: steps between two estimates.
        eps: added to the eigenvalues: how much a step along directions without variance is trusted; 0 is for
            covariances of full rank.
        num_samples: how many samples an estimate takes.
        whitening: along the eigenvectors, or turned back to the axes of the inputs.
        optimizer_state: what becomes of the optimizer's state of these weights and biases when the basis changes:
            forgotten, or, for the momentum of SGD, transformed as a velocity, so that W goes on as it did.
        centering: False for layers without a bias: c is 0 then.

    Raises:
        ValueError: a setting is out of its range; ``optimizer_state="transform"`` for another optimizer than SGD; a
            layer has no bias that the optimizer steps, but with ``centering=False``; weights are tied or there are
            none; several processes train together. In a step: a layer has a gradient of its weight and none of its
            bias, or the inputs for a new basis are not finite.
        RuntimeError: in a step, after one that failed within the optimizer.

    Source: Desjardins, Simonyan, Pascanu, Kavukcuoglu, NeurIPS 2015; the constants as far as remembered.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        interval: int = 1000,
        eps: float = 1e-3,
        num_samples: int = 1024,
        whitening: Whitening = "pca",
        optimizer_state: Literal["reset", "transform"] = "reset",
        centering: bool = True,
    ) -> None:
        _check_settings(interval, num_samples, eps, whitening)
        _check_state(optimizer_state, optimizer)
        self._layers = weight_layers(model, optimizer, what="PRONG")
        if centering:
            check_biases(self._layers, optimizer, what="PRONG")
        self.interval, self.eps, self.num_samples = interval, eps, num_samples
        self.whitening, self.optimizer_state, self.centering = whitening, optimizer_state, centering
        self._ages = dict.fromkeys(self._layers, interval)  # steps since the last estimate; the first is due at once
        self._samples: dict[str, InputMoments] = {}
        self._bases: dict[str, WhiteningBasis] = {}
        self._inside: dict[str, WhitenedLayer] = {}
        self._inputs = InputStatistics(self._layers, covariances)
        super().__init__(model, optimizer)

    def before_step(self) -> None:
        """Take a new basis if it is time, and put V, d and their gradients in the place of W, b and theirs."""
        if self._inside:
            self._restore()
            raise RuntimeError(
                "PRONG needs gradients at the weights; got those at V, for the last step failed within the optimizer; "
                "the weights are as they were before it now: evaluate the gradients again"
            )
        with_gradients = [
            name
            for name, layer in self._layers.items()
            if has_gradients(name, layer, what="PRONG", bias=self.centering)
        ]
        self._estimate()
        for name in with_gradients:
            if name in self._bases:
                self._inside[name] = WhitenedLayer(self._layers[name], self._bases[name])

    def after_step(self) -> None:
        """Put W and b back, moved by what V and d moved by."""
        for inside in self._inside.values():
            inside.leave()
        self._inside.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the bases, how many steps old they are, and what was gathered for the next ones."""
        return {
            "ages": dict(self._ages),
            "bases": {name: basis._asdict() for name, basis in self._bases.items()},
            "samples": {name: moments._asdict() for name, moments in self._samples.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned; the optimizer's own belongs to it.

        Args:
            state_dict: that state.

        Raises:
            ValueError: it names other layers, or layers of other sizes.
        """
        bases, samples = state_dict["bases"], state_dict["samples"]
        check_channels({name: entry["center"] for name, entry in bases.items()}, self._layers, what="PRONG")
        check_channels({name: entry["mean"] for name, entry in samples.items()}, self._layers, what="PRONG")
        self._bases = {
            name: WhiteningBasis(*(entry[f].to(self._layers[name].weight.device) for f in WhiteningBasis._fields))
            for name, entry in bases.items()
        }
        self._samples = {name: InputMoments(*(e[f] for f in InputMoments._fields)) for name, e in samples.items()}
        self._ages = dict(state_dict["ages"])
        self._inside.clear()
        self._watch()

    def remove(self) -> None:
        """Take the hooks off, those on the layers too; after a step that failed, put W and b back."""
        super().remove()
        self._inputs.remove()
        with torch.no_grad():
            self._restore()

    def _estimate(self) -> None:
        for name, seen in self._inputs.take().items():
            gotten = self._samples[name] = gathered(self._samples[name], seen) if name in self._samples else seen
            if gotten.samples >= self.num_samples:
                self._rebase(name, self._samples.pop(name))
                self._ages[name] = 0
        for name in self._ages:
            self._ages[name] += 1
        self._watch()

    def _watch(self) -> None:
        self._inputs.active = {name for name, age in self._ages.items() if age >= self.interval}

    def _rebase(self, name: str, moments: InputMoments) -> None:
        if moments.spread is None or not bool(moments.spread.isfinite().all()):
            raise ValueError(
                f"PRONG needs finite inputs for a new basis; got others at layer {name!r}; lower the learning rate or "
                "raise eps"
            )
        new = whitening_basis(moments, eps=self.eps, whitening=self.whitening, centering=self.centering)
        layer, old = self._layers[name], self._bases.get(name)
        if self.optimizer_state == "transform":
            turn_momentum(self.optimizer, layer, old, new)
        else:
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    self.optimizer.state.pop(parameter, None)
        self._bases[name] = new

    def _restore(self) -> None:
        for inside in self._inside.values():
            inside.abandon()
        self._inside.clear()


def _check_settings(interval: int, num_samples: int, eps: float, whitening: object) -> None:
    if interval < 1 or num_samples < 1:
        raise ValueError(f"interval and num_samples must be at least 1; got {interval} and {num_samples}; raise them")
    if eps < 0:
        raise ValueError(f"eps must not be negative; got {eps}; 1e-3 is the default")
    if whitening not in {"pca", "zca"}:
        raise ValueError(f'whitening must be "pca" or "zca"; got {whitening!r}; choose one of them')


def _check_state(optimizer_state: object, optimizer: torch.optim.Optimizer) -> None:
    if optimizer_state not in {"reset", "transform"}:
        raise ValueError(f'optimizer_state must be "reset" or "transform"; got {optimizer_state!r}; choose one of them')
    if optimizer_state == "transform" and not isinstance(optimizer, torch.optim.SGD):
        raise ValueError(
            f"PRONG can transform the momentum of torch.optim.SGD alone; got {type(optimizer).__name__}, whose scales "
            'of single weights mean nothing in another basis; use optimizer_state="reset"'
        )
