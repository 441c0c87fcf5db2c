"""Which channels of a network can be rescaled together without a change of its function."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from normlens.nn.vocabulary import concept
from normlens.optim.forward_graph import module_calls, trace_forward
from normlens.optim.weight_layers import WeightLayer
from normlens.risk import eager_module

__all__ = ["Stream", "find_streams", "is_weight_layer"]

_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POINTWISE_FUNCTIONS = {torch.relu, torch.relu_, F.relu, F.leaky_relu, F.dropout, "relu", "relu_", "contiguous"}
_POOL_FUNCTIONS = {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
}  # fmt: skip
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, torch.sub}
_FLATTENS = {torch.flatten, "flatten"}


@dataclass(frozen=True)
class Stream:
    """Channels that are rescaled together: what writes them, what reads them, and the batch norms on their way.

    ``Stream(("fc1",), ("fc2",))`` is the plain pair. All layers that write to one residual stream have one scale per
    channel, for the identity around them carries it on.

    Args:
        writers: names of the layers whose output channels these are.
        readers: names of the layers whose input channels these are; a linear layer behind a flattened convolution reads
            ``in_features / channels`` columns of each.
        norms: names of the batch norms between them.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    norms: tuple[str, ...] = ()


@dataclass(eq=False)
class _Channels:
    """A stream that grows while the graph is followed."""

    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    pinned: bool = False  # an input or output of the network: its scale is not ours
    refused: str = ""  # what is not homogeneous on the way here from a weight layer

    def absorb(self, other: _Channels) -> None:
        """Take over all that another stream has."""
        self.writers += other.writers
        self.readers += other.readers
        self.norms += other.norms
        self.pinned, self.refused = self.pinned or other.pinned, self.refused or other.refused


def is_weight_layer(module: nn.Module) -> bool:
    """Say whether rows and columns of the module's weight are its output and input channels, free to be rescaled.

    Args:
        module: any module.
    """
    plain = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return plain and not parametrize.is_parametrized(module) and getattr(module, "groups", 1) == 1


def find_streams(model: nn.Module) -> tuple[Stream, ...]:
    """Return the hidden streams of a network in the order they are written, from its forward graph.

    Between two weight layers (``torch.nn.Linear``, ``Conv1d`` to ``Conv3d`` without groups) may stand what commutes
    with a positive factor per channel: ReLU, leaky and parametric ReLU, dropout, pooling, flattening, sums of streams,
    and batch norms, whose ``weight`` and ``bias`` carry the factor on. Streams that touch an input or output of the
    network are left out: their scale is fixed.

    Valid where channels are at dimension 1, or last in ``(N, C)``.

    Args:
        model: the module, whose forward pass ``torch.fx`` can follow.

    Raises:
        ValueError: the pass cannot be followed, a layer runs twice, something else stands between two weight layers, or
            there is no hidden stream.
    """
    advice = "name the streams yourself: [Stream(('fc1',), ('fc2',)), ...]"
    graph = trace_forward(model, what="equi-normalization", advice=advice)
    found = _Follower(eager_module(model)).follow(graph)
    streams = tuple(
        Stream(tuple(c.writers), tuple(c.readers), tuple(c.norms))
        for c in found
        if c.writers and c.readers and not c.pinned
    )
    if not streams:
        raise ValueError(
            f"equi-normalization needs two weight layers in a row; got none in {type(model).__name__}; "
            "a single layer has nothing to balance"
        )
    return streams


class _Follower:
    """Follows a graph from its inputs and keeps the stream of every node.

    Args:
        model: whose modules the graph calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.at: dict[fx.Node, _Channels] = {}
        self.flat: set[fx.Node] = set()

    def follow(self, graph: fx.Graph) -> list[_Channels]:
        """Return all streams, each once, in the order of their first node."""
        stateful = {n for n, m in self.modules.items() if is_weight_layer(m) or concept(m) == "BatchNorm"}
        module_calls(graph, what="equi-normalization", modules=frozenset(stateful))
        for node in graph.nodes:
            self.at[node] = self._step(node)
        return list(dict.fromkeys(self.at.values()))

    def _step(self, node: fx.Node) -> _Channels:
        inputs = node.all_input_nodes
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if not inputs or node.op == "output":
            return self._end(inputs)
        flattens = self._flattens(node, module)
        if flattens or any(source in self.flat for source in inputs):
            self.flat.add(node)
        if module is not None and is_weight_layer(module) and self._reads(module, inputs[0]):
            self.flat.discard(node)
            return self._write(str(node.target), self.at[inputs[0]])
        if module is not None and concept(module) == "BatchNorm":
            self.at[inputs[0]].norms.append(str(node.target))
            return self.at[inputs[0]]
        if flattens or self._homogeneous(node, module):
            return self._join(inputs)
        return self._stop(node, module)

    def _reads(self, layer: WeightLayer, source: fx.Node) -> bool:
        """Say whether a linear layer's columns are channels: behind a convolution, only of a flattened image."""
        writers = [self.modules[name] for name in self.at[source].writers]
        image = any(isinstance(writer, _ConvNd) for writer in writers)
        return isinstance(layer, _ConvNd) or not image or source in self.flat

    def _write(self, name: str, source: _Channels) -> _Channels:
        if source.refused:
            raise ValueError(
                f"equi-normalization needs positively homogeneous functions between weight layers (ReLU, pooling, "
                f"batch norm, ...); got {source.refused} before {name}; name the streams without it, or leave this "
                "network alone"
            )
        source.readers.append(name)
        return _Channels(writers=[name])

    def _homogeneous(self, node: fx.Node, module: nn.Module | None) -> bool:
        image = not self._rows(node)
        if module is not None:
            return isinstance(module, _POINTWISE) or (image and isinstance(module, _POOLS))
        if node.target in _SUMS:
            return len(node.args) == 2 and all(isinstance(term, fx.Node) for term in node.args)
        return node.target in _POINTWISE_FUNCTIONS or (image and node.target in _POOL_FUNCTIONS)

    def _rows(self, node: fx.Node) -> bool:
        """Say whether a node's input is a matrix whose last dimension holds the channels: pooling would mix them."""
        source = node.all_input_nodes[0]
        return source in self.flat or any(isinstance(self.modules[n], nn.Linear) for n in self.at[source].writers)

    @staticmethod
    def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
        if module is not None:
            return isinstance(module, nn.Flatten) and bool(module.start_dim == 1)
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        return node.target in _FLATTENS and bool(start == 1)

    def _join(self, inputs: list[fx.Node]) -> _Channels:
        first = self.at[inputs[0]]
        for source in inputs[1:]:
            other = self.at[source]
            if other is not first:
                first.absorb(other)
                self.at = {node: first if channels is other else channels for node, channels in self.at.items()}
        return first

    def _stop(self, node: fx.Node, module: nn.Module | None) -> _Channels:
        sources = [self.at[source] for source in node.all_input_nodes]
        kind = node.name if module is None else f"{type(module).__name__} ({node.target})"
        seen = next((source.refused for source in sources if source.refused), "")
        written = any(source.writers for source in sources)
        return _Channels(pinned=self._end(node.all_input_nodes).pinned, refused=seen or (kind if written else ""))

    def _end(self, inputs: list[fx.Node]) -> _Channels:
        for source in inputs:
            self.at[source].pinned = True
        return _Channels(pinned=True)
