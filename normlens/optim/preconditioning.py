"""What the transforms share that step as if inputs were centered: running moments of the inputs, and their state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normlens.optim.input_statistics import InputMoments, InputStatistics, Measure
from normlens.optim.layer_gradients import check_biases, check_channels, has_gradients
from normlens.optim.transform import Transform
from normlens.optim.weight_layers import WeightLayer, weight_layers

__all__ = ["InputPreconditioner"]


class InputPreconditioner(Transform):
    """A transform that keeps running moments of the inputs of the weight layers, and changes their gradients by them.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of its parameters.
        measure: what is measured of an input.
        centering: whether layers need a bias.

    Raises:
        ValueError: a layer has no bias that the optimizer steps, though it needs one; weights are tied or there are
            none; several processes train together.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, measure: Measure, *, centering: bool = True
    ) -> None:
        what = type(self).__name__
        self._layers, self._centering = weight_layers(model, optimizer, what=what), centering
        if centering:
            check_biases(self._layers, optimizer, what=what)
        self._inputs = InputStatistics(self._layers, measure)
        self._running: dict[str, InputMoments] = {}
        self._updates: dict[str, int] = {}
        super().__init__(model, optimizer)

    def blend(self, running: InputMoments | None, batch: InputMoments, updates: int) -> InputMoments:
        """Return the running moments with a new batch in them.

        Args:
            running: the moments so far; None before the first batch.
            batch: those of the batch.
            updates: how many batches came, this one included.
        """
        raise NotImplementedError

    def precondition(self, layer: WeightLayer, moments: InputMoments) -> None:
        """Edit the gradients of a layer.

        Args:
            layer: the layer.
            moments: the running ones, with the counts of the last batch.
        """
        raise NotImplementedError

    def before_step(self) -> None:
        """Take the last passes into the running moments and change the gradients by them."""
        what = type(self).__name__
        for name, batch in self._inputs.take().items():
            self._update(name, batch)
        for name, layer in self._layers.items():
            if has_gradients(name, layer, what=what, bias=self._centering):
                self._check_seen(name)
                self.precondition(layer, self._running[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the running moments of each layer that was seen, and how many batches they are from."""
        return {name: {**seen._asdict(), "updates": self._updates[name]} for name, seen in self._running.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned.

        Args:
            state_dict: that state.

        Raises:
            ValueError: it names other layers, or layers of other sizes.
        """
        what, means = type(self).__name__, {name: entry["mean"] for name, entry in state_dict.items()}
        check_channels(means, self._layers, what=what)
        self._updates = {name: entry["updates"] for name, entry in state_dict.items()}
        self._running = {
            name: InputMoments(*(entry[field] for field in InputMoments._fields)) for name, entry in state_dict.items()
        }

    def remove(self) -> None:
        """Take the hooks off, those on the layers too."""
        super().remove()
        self._inputs.remove()

    def _update(self, name: str, batch: InputMoments) -> None:
        updates = self._updates[name] = self._updates.get(name, 0) + 1
        mean, spread = self.blend(self._running.get(name), batch, updates)[:2]
        self._running[name] = InputMoments(mean, spread, *batch[2:])

    def _check_seen(self, name: str) -> None:
        if name not in self._running:
            raise ValueError(
                f"{type(self).__name__} needs a forward pass in train mode through every layer that has a gradient; "
                f"got none through {name!r}; call model.train(), or step a layer that is not called as a module "
                "(as in torch.nn.MultiheadAttention) with an optimizer of its own"
            )
