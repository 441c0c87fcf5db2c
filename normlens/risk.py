"""EmpiricalRisk: model, loss and batches as a pure function of the parameters."""

from __future__ import annotations

import copy
import fnmatch
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import functional_call

from normlens.batch import batch_size, fingerprint, first_samples, is_one_batch, move_batch, split_batch
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
        process_group: where every rank holds a shard of the data, e.g. ``torch.distributed.group.WORLD``: losses,
            gradients and products are sums over all ranks, and every rank must ask for the same ones. Train-mode
            batch norm takes its statistics over each rank's own batches.

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
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if mode not in ("train", "eval", None):
            raise ValueError(f"mode must be 'train', 'eval' or None (as the model stands); got {mode!r}")
        self.model = eager_module(model)
        self.data, self.seed = data, seed
        self._loss, self._mode = loss, mode
        self._call = _Forward(self.model, forward or _default_forward)
        self._selected = _select(self.model, params)
        self._fingerprints: dict[int, int] = {}
        self._group = process_group

    @property
    def mode(self) -> str:
        """How the model stands when it is evaluated: "train", "eval", or "mixed" where its modules differ."""
        modes = {module.training for module in self.model.modules()}
        return self._mode or ("mixed" if len(modes) > 1 else "train" if modes == {True} else "eval")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The selected parameters by name, detached; tied weights appear once."""
        return {name: tensor.detach() for name, tensor in self.model.named_parameters() if name in self._selected}

    @property
    def samples(self) -> int:
        """The number of samples that the loss is a mean over, those of all ranks together."""
        return self.count(sum(batch_size(batch) for batch in self.batches()))

    def head(self, samples: int) -> EmpiricalRisk:
        """Return the risk of the same model on the first samples of the data, as many batches as that takes."""
        taken: list[Batch] = []
        for batch in self.batches():
            taken.append(first_samples(batch, samples))
            samples -= batch_size(taken[-1])
            if samples <= 0:
                break
        return self._on(self.model, taken)

    def select(self, params: Params) -> EmpiricalRisk:
        """Return the risk of the same model on the same data as a function of other parameters.

        Raises:
            ValueError: ``params`` selects nothing, or what is not floating-point.
        """
        chosen = self._on(self.model, self.data)
        chosen._selected, chosen._group = _select(self.model, params), self._group
        return chosen

    def evaluated(self) -> EmpiricalRisk:
        """Return the risk of the same model on the same data in eval mode."""
        standing = copy.copy(self)
        standing._mode = "eval"
        return standing

    def double(self, samples: int | None = None) -> EmpiricalRisk:
        """Return the risk of a float64 copy of the model: on the first samples of the first batch, or on all data."""
        whole = [first_samples(batch, samples or batch_size(batch), double=True) for batch in self._some(samples)]
        copied = self._on(copy.deepcopy(self.model).double(), whole)
        if isinstance(self._loss, torch.nn.Module):
            copied._loss = copy.deepcopy(self._loss).double()
        return copied

    def _some(self, samples: int | None) -> Iterator[Batch]:
        return self.batches() if samples is None else itertools.islice(self.batches(), 1)

    def _on(self, model: torch.nn.Module, data: Data) -> EmpiricalRisk:
        names, forward = sorted(self._selected) or None, self._call.call
        copied = EmpiricalRisk(model, self._loss, data, forward=forward, mode=self._mode, seed=self.seed)
        copied._selected = _select(model, names)
        return copied

    def batches(self) -> Iterator[Batch]:
        """Iterate over the batches, moved to the device of the parameters."""
        device = next((p.device for p in itertools.chain(self.model.parameters(), self.model.buffers())), None)
        if is_one_batch(self.data):
            yield move_batch(self.data, device)
            return
        for index, batch in enumerate(self._iterate()):
            self._recognize(index, batch)
            yield move_batch(batch, device)

    def _iterate(self) -> Iterator[Batch]:
        """Iterate over a loader with our own random numbers, the same at every pass, and give back the user's."""
        end, iterator = object(), None
        for index in itertools.count():
            with preserved_random_state(self.seed + index):
                iterator = iter(self.data) if iterator is None else iterator
                batch = next(iterator, end)
            if batch is end:
                return
            yield batch

    def _recognize(self, index: int, batch: Batch) -> None:
        seen = fingerprint(batch)
        if self._fingerprints.setdefault(index, seen) != seen:
            raise ValueError(
                f"the data must be the same at every pass; batch {index} is not what it was: pass a loader that does "
                "not shuffle or augment by a random state of its own, or a list of batches"
            )

    def outputs(self) -> Iterator[tuple[Any, Any]]:
        """Yield ``(outputs, targets)`` of each batch, without a graph."""
        for batch in self.batches():
            with torch.no_grad(), self._undisturbed():
                result = self._call_with({}, batch)
            yield result, split_batch(batch)[1]

    def loss(self) -> Tensor:
        """Return the loss at the present parameters, a scalar tensor without a graph."""
        with torch.no_grad():
            return self._mean(lambda batch: {"loss": self.batch_loss({}, batch)})["loss"]

    def gradient(self, at: Named | None = None) -> dict[str, Tensor]:
        r"""Return :math:`\nabla L(\theta)` by parameter name; zeros for a parameter that the loss does not use.

        Args:
            at: other values of the selected parameters; None for the present ones.
        """
        where = self.parameters if at is None else at
        return self._mean(lambda batch: self._batch_gradient(where, batch)) if self._selected else {}

    def _batch_gradient(self, where: Named, batch: Batch) -> dict[str, Tensor]:
        theta = {name: tensor.detach().clone().requires_grad_() for name, tensor in where.items()}

        def gradients(outputs: Any) -> tuple[Tensor, ...]:
            loss = self._loss(outputs, split_batch(batch)[1])
            if not loss.requires_grad:  # it uses none of them
                return tuple(map(torch.zeros_like, theta.values()))
            return torch.autograd.grad(loss, list(theta.values()), allow_unused=True, materialize_grads=True)

        # The backward pass is run in there, too: a checkpointed block computes its forward pass again.
        with torch.enable_grad(), self._undisturbed():
            return dict(zip(theta, self._call_with(theta, batch, gradients), strict=True))

    def batch_loss(self, theta: Named, batch: Batch) -> Tensor:
        """Return the loss of one batch with some parameters replaced by ``theta``; differentiable in them."""
        with self._undisturbed():
            return self._loss(self._call_with(theta, batch), split_batch(batch)[1])

    def batch_outputs(self, theta: Named, batch: Batch) -> Any:
        """Return the outputs for one batch with some parameters replaced by ``theta``; differentiable in them."""
        with self._undisturbed():
            return self._call_with(theta, batch)

    def output_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the loss of outputs on a batch's targets."""
        return self._loss(outputs, split_batch(batch)[1])

    def _mean(self, evaluate: Callable[[Batch], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Average over the batches, each weighted by its number of samples."""
        total: dict[str, Tensor] = {}
        n = 0
        for batch in self.batches():
            size = batch_size(batch)
            for name, value in evaluate(batch).items():
                total[name] = total[name] + size * value if name in total else size * value
            n += size
        n = self.count(n)
        if n == 0:
            raise ValueError("the data must hold at least one sample; got none (an exhausted iterator? pass a list)")
        return {name: self.summed(value) / n for name, value in total.items()}

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks of the process group; the tensor itself without one."""
        if self._group is None:
            return tensor
        result = tensor.detach().clone()
        dist.all_reduce(result, group=self._group)
        return result

    def count(self, samples: int) -> int:
        """Return the number of samples over all ranks."""
        return samples if self._group is None else int(self.summed(torch.tensor(samples)).item())

    def _call_with(self, theta: Named, batch: Batch, use: Callable[[Any], Any] | None = None) -> Any:
        """Return the outputs at ``theta``, or what ``use`` makes of them while the model still stands there."""
        state = {f"model.{name}": tensor.detach().clone() for name, tensor in self.model.named_buffers()}
        state |= {f"model.{name}": tensor.detach() for name, tensor in self.model.named_parameters()}
        state |= {f"model.{name}": tensor for name, tensor in theta.items()}
        return functional_call(self._call, state, (split_batch(batch)[0], use))

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
        self.call = call

    def forward(self, inputs: Any, use: Callable[[Any], Any] | None) -> Any:
        outputs = self.call(self.model, inputs)
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
    integer = [name for name in chosen if not named[name].is_floating_point()]
    if integer:
        raise ValueError(f"parameters to differentiate by must be floating-point; {integer[0]!r} is "
                         f"{named[integer[0]].dtype}: leave it out with params=")  # fmt: skip
    if not chosen:
        raise ValueError(f"params must select at least one parameter; {params!r} selects none of {list(named)[:8]}…")
    return chosen
