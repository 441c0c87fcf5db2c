"""Which weight layer writes the units of a layer, and which ones read them, from the graph of the forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import pooling

from normlens.nn.vocabulary import concept, is_normalization
from normlens.optim.forward_graph import trace_forward
from normlens.optim.rescaling_graph import is_weight_layer
from normlens.probes.module_kinds import is_nonlinearity

__all__ = ["Connections", "connections"]

_BOUNDED = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Softsign)
_POINTWISE = (nn.Identity, nn.modules.dropout._DropoutNd, *_BOUNDED)
_POOLS = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)
_FUNCTIONS = {
    torch.relu, torch.relu_, F.relu, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.softplus, F.mish, F.hardswish,
    torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.dropout, F.dropout2d, "relu", "relu_", "tanh", "sigmoid",
}  # fmt: skip
_POOL_FUNCTIONS = {F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d}
_FLATTENS = {torch.flatten, "flatten"}


@dataclass(frozen=True)
class Connections:
    """Who writes the units of a layer and who reads them.

    Attributes:
        writer: the linear or convolutional layer of whose output channels each is one unit; "" where not known.
        norm: the normalization between that layer and the place asked for; "" where there is none.
        readers: the layers that take in the units, all of them; empty where one way of the units is not known.
        alone: whether what the writer says goes nowhere else on its way here.
        pooled: whether a reader takes in one value per unit that was pooled over space.
    """

    writer: str
    norm: str
    readers: tuple[str, ...]
    alone: bool
    pooled: bool


def connections(model: nn.Module, names: Iterable[str]) -> dict[str, Connections]:
    """Follow the forward pass from some modules back to who writes their channels and on to who reads them.

    Back: through normalizations, dropout, and pooling to one plain ``torch.nn.Linear`` or convolution (no groups, no
    transposition, no parametrization). On: through elementwise functions, dropout, pooling, flattening behind dimension
    1 and batch norms, along every branch; a sum (a residual connection), an output of the network, a group or layer
    norm, in which units meet, or anything else makes the readers unknown. So does a module that is called twice, and a
    forward pass that ``torch.fx`` cannot follow: nothing is guessed. Channels are at dimension 1, or last in what a
    linear layer writes.

    Args:
        model: the module; nothing of it is changed or computed.
        names: of modules, nonlinearities mostly; a weight layer is its own writer.

    Returns:
        What is known, by name; a module of which nothing is known is left out.
    """
    try:
        graph = trace_forward(model, what="unit connections", advice="none are known then")
    except ValueError:
        return {}
    follower = _Follower(model, graph)
    found = {name: follower.around(name) for name in names}
    return {name: what for name, what in found.items() if what.writer or what.readers}


class _Follower:
    """Walks the graph from one node."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules())
        self.calls: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self.calls.setdefault(str(node.target), []).append(node)

    def around(self, name: str) -> Connections:
        """Return what is known of the units of one module."""
        nodes = self.calls.get(name, [])
        if len(nodes) != 1:
            return Connections("", "", (), False, False)
        writer, norm, alone = self._back(nodes[0])
        readers, pooled = self._on(nodes[0], writer) if writer else ((), False)
        return Connections(writer, norm, readers, alone, pooled)

    def _back(self, node: fx.Node) -> tuple[str, str, bool]:
        unknown = ("", "", False)
        norm, alone, pooled = "", True, False
        while True:
            module = self._module(node)
            if module is not None and is_weight_layer(module):
                mixed = pooled and isinstance(module, nn.Linear)  # pooling takes a linear layer's units for space
                return unknown if mixed or not self._own(node) else (self._own(node), norm, alone)
            if module is None or not self._passes_back(module) or len(node.all_input_nodes) != 1:
                return unknown
            if is_normalization(module):
                if norm:
                    return unknown
                norm = str(node.target)
            pooled = pooled or isinstance(module, _POOLS)
            node = node.all_input_nodes[0]
            alone = alone and len(node.users) == 1

    def _own(self, node: fx.Node) -> str:
        """Return a weight layer's name if it is called once and its weight is a parameter of its own."""
        name = str(node.target)
        return name if len(self.calls[name]) == 1 and "weight" in self.modules[name]._parameters else ""

    def _on(self, start: fx.Node, writer: str) -> tuple[tuple[str, ...], bool]:
        """Follow every branch to the weight layers at its end; pooled only if every one of them reads single values."""
        rows = isinstance(self.modules[writer], nn.Linear)
        readers: list[str] = []
        flats: list[bool] = []
        waiting = [(user, False) for user in start.users]
        while waiting:
            node, flat = waiting.pop(0)
            module = self._module(node)
            if module is not None and is_weight_layer(module):
                if not self._own(node) or isinstance(module, nn.Linear) != (rows or flat):
                    return (), False
                readers.append(str(node.target))
                flats.append(flat)
            elif self._passes_on(node, module, rows or flat):
                waiting += [(user, flat or self._flattens(node, module)) for user in node.users]
            else:
                return (), False
        units = len(self.modules[writer].weight)
        widths = [self.modules[name].weight.shape[1] for name in readers]
        if rows and set(widths) != {units}:  # flattened with its positions, which come before the units
            return (), False
        return tuple(dict.fromkeys(readers)), bool(flats) and all(flats) and set(widths) == {units}

    def _passes_back(self, module: nn.Module) -> bool:
        pointwise = isinstance(module, _POINTWISE) or is_nonlinearity(module)
        return pointwise or isinstance(module, _POOLS) or is_normalization(module)

    def _passes_on(self, node: fx.Node, module: nn.Module | None, rows: bool) -> bool:
        """Say whether units stay apart: pooling what a linear layer wrote would mix them."""
        if self._flattens(node, module):
            return True
        if module is None:
            return node.target in _FUNCTIONS or (not rows and node.target in _POOL_FUNCTIONS)
        pointwise = isinstance(module, _POINTWISE) or is_nonlinearity(module) or concept(module) == "BatchNorm"
        return pointwise or (not rows and isinstance(module, _POOLS))

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    @staticmethod
    def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
        if module is not None:
            return isinstance(module, nn.Flatten) and bool(module.start_dim == 1)
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        return node.op != "output" and node.target in _FLATTENS and bool(start == 1)
