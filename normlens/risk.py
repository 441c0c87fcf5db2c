"""EmpiricalRisk: model, loss and batches as a pure function of the parameters."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from normlens.module_state import preserved_attributes
from normlens.random_state import preserved_random_state
from normlens.typing import Batch, Data, Loss, Named, Params

__all__ = ["EmpiricalRisk", "eager_module"]


class EmpiricalRisk:
    r"""The mean loss of a model over data, as a function of its parameters.

    .. math:: L(\theta) = \sum_b \frac{n_b}{n} \ell(f_\theta(x_b), y_b), \qquad n = \sum_b n_b

    Evaluating it changes nothing: parameters and buffers are replaced by copies for the call (``functional_call``), so
    running statistics, ``.grad`` and spectral-norm vectors stay as they are; random states are put back, and dropout
    draws the same masks at every evaluation.

    Args:
        model: the module; ``torch.compile`` and data-parallel wrappers are unwrapped.
        loss: ``loss(outputs, targets)`` -> mean over the batch.
        data: one batch, a sequence of batches, or a loader that can be iterated again. A batch is a pair
            ``(inputs, targets)``; any other batch is handed whole to ``forward`` and to ``loss`` as its targets.
        forward: ``forward(model, inputs) -> outputs``; by default the model is called with ``inputs``: unpacked when
            they are a mapping or a tuple.
        params: which parameters to differentiate by; None for every trainable one.
        mode: "train", "eval", or None to evaluate the model as it stands.
        seed: of the dropout masks.

    Raises:
        ValueError: ``mode`` is none of these, or ``params`` selects nothing.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        data: Data,
        *,
        forward: Callable[[torch.nn.Module, Any], Any] | None = None,
        params: Params = None,
        mode: str | None = None,
        seed: int = 0,
    ) -> None:
        if mode not in ("train", "eval", None):
            raise ValueError(f"mode must be 'train', 'eval' or None (as the model stands); got {mode!r}")
        self.model = eager_module(model)
        self.data = data
        self.seed = seed
        self._loss = loss
        self._mode = mode
        self._call = _Forward(self.model, forward or _default_forward)
        self._selected = _select(self.model, params)

    @property
    def mode(self) -> str:
        """How the model stands when it is evaluated: "train", "eval", or "mixed" where its modules differ."""
        modes = {module.training for module in self.model.modules()}
        return self._mode or ("mixed" if len(modes) > 1 else "train" if modes == {True} else "eval")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The selected parameters by name, detached; tied weights appear once."""
        return {name: tensor.detach() for name, tensor in self.model.named_parameters() if name in self._selected}

    def batches(self) -> Iterator[Batch]:
        """Iterate over the batches, moved to the device of the parameters."""
        device = next((p.device for p in itertools.chain(self.model.parameters(), self.model.buffers())), None)
        for batch in [self.data] if _is_one_batch(self.data) else self.data:
            yield _move(batch, device)

    def outputs(self) -> Iterator[tuple[Any, Any]]:
        """Yield ``(outputs, targets)`` of each batch, without a graph."""
        for batch in self.batches():
            with torch.no_grad(), self._undisturbed():
                result = self._call_with({}, batch)
            yield result, _split(batch)[1]

    def loss(self) -> Tensor:
        """Return the loss at the present parameters, a scalar tensor without a graph."""
        with torch.no_grad():
            return self._mean(lambda batch: {"loss": self._batch_loss({}, batch)})["loss"]

    def gradient(self) -> dict[str, Tensor]:
        r"""Return :math:`\nabla L(\theta)` by parameter name; zeros for a parameter that the loss does not use."""
        return self._mean(self._batch_gradient) if self._selected else {}

    def _batch_gradient(self, batch: Batch) -> dict[str, Tensor]:
        theta = {name: tensor.clone().requires_grad_() for name, tensor in self.parameters.items()}

        def gradients(outputs: Any) -> tuple[Tensor, ...]:
            loss = self._loss(outputs, _split(batch)[1])
            if not loss.requires_grad:  # it uses none of them
                return tuple(map(torch.zeros_like, theta.values()))
            return torch.autograd.grad(loss, list(theta.values()), allow_unused=True, materialize_grads=True)

        # The backward pass is run in there, too: a checkpointed block computes its forward pass again.
        with torch.enable_grad(), self._undisturbed():
            return dict(zip(theta, self._call_with(theta, batch, gradients), strict=True))

    def _batch_loss(self, theta: Named, batch: Batch) -> Tensor:
        with self._undisturbed():
            return self._loss(self._call_with(theta, batch), _split(batch)[1])

    def _mean(self, evaluate: Callable[[Batch], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Average over the batches, each weighted by its number of samples."""
        total: dict[str, Tensor] = {}
        n = 0
        for batch in self.batches():
            size = _size(batch)
            for name, value in evaluate(batch).items():
                total[name] = total[name] + size * value if name in total else size * value
            n += size
        if n == 0:
            raise ValueError("the data must hold at least one sample; got none (an exhausted iterator? pass a list)")
        return {name: value / n for name, value in total.items()}

    def _call_with(self, theta: Named, batch: Batch, use: Callable[[Any], Any] | None = None) -> Any:
        """Return the outputs at ``theta``, or what ``use`` makes of them while the model still stands there."""
        state = {f"model.{name}": tensor.detach().clone() for name, tensor in self.model.named_buffers()}
        state |= {f"model.{name}": tensor.detach() for name, tensor in self.model.named_parameters()}
        state |= {f"model.{name}": tensor for name, tensor in theta.items()}
        return functional_call(self._call, state, (_split(batch)[0], use))

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Evaluate in our mode, eagerly and with our dropout masks; put all that back afterwards."""
        with preserved_attributes(self.model), preserved_random_state(self.seed):
            for module in self.model.modules():
                module._compiled_call_impl = None  # a compiled call knows neither our parameters nor our hooks
                if self._mode is not None:
                    module.training = self._mode == "train"
            yield


class _Forward(torch.nn.Module):
    """The model behind the user's ``forward``, as a module, so that ``functional_call`` reaches its parameters."""

    def __init__(self, model: torch.nn.Module, call: Callable[[torch.nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, inputs: Any, use: Callable[[Any], Any] | None) -> Any:
        outputs = self._call(self.model, inputs)
        return outputs if use is None else use(outputs)


def eager_module(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module behind the wrappers of ``torch.compile``, DataParallel and DistributedDataParallel."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


def _default_forward(model: torch.nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _select(model: torch.nn.Module, params: Params) -> frozenset[str]:
    named = dict(model.named_parameters())
    if params is None:
        return frozenset(name for name, tensor in named.items() if tensor.requires_grad)
    if callable(params):
        chosen = frozenset(name for name, tensor in named.items() if params(name, tensor))
    else:
        patterns = [params] if isinstance(params, str) else list(params)
        chosen = frozenset(name for name in named if any(fnmatch.fnmatchcase(name, p) for p in patterns))
    if not chosen:
        raise ValueError(f"params must select at least one parameter; {params!r} selects none of {list(named)[:8]}…")
    return chosen


def _split(batch: Batch) -> tuple[Any, Any]:
    """Return (inputs, targets): the two halves of a pair; of anything else, the batch itself twice."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, batch


def _is_one_batch(data: Data) -> bool:
    """Tell a batch from a collection of batches: a tensor, a mapping, or a sequence that holds a tensor itself."""
    if isinstance(data, Tensor | Mapping):
        return True
    return isinstance(data, list | tuple) and any(isinstance(item, Tensor) for item in data)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from itertools.chain.from_iterable(map(_tensors, batch.values()))
    elif isinstance(batch, Iterable) and not isinstance(batch, str):
        yield from itertools.chain.from_iterable(map(_tensors, batch))


def _size(batch: Batch) -> int:
    first = next(_tensors(batch), None)
    return len(first) if first is not None and first.ndim else 1


def _move(batch: Batch, device: torch.device | None) -> Batch:
    if isinstance(batch, Tensor):
        return batch.to(device) if device is not None else batch
    if isinstance(batch, Mapping):
        return {key: _move(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [_move(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch
