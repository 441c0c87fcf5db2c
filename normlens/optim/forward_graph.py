"""What a model's forward pass does with its modules, in order, found by following it without data."""

from __future__ import annotations

from torch import fx, nn

from normlens.risk import eager_module

__all__ = ["module_calls", "trace_forward"]


class _Tracer(fx.Tracer):
    """Enters containers; a module without children, or one of PyTorch's, is one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None or super().is_leaf_module(m, module_qualified_name)


def trace_forward(model: nn.Module, *, what: str, advice: str) -> fx.Graph:
    """Return the graph of a model's forward pass from ``torch.fx``: its modules and functions, and who feeds whom.

    Nothing is computed. Valid for a forward pass whose course does not depend on values or shapes.

    Args:
        model: the module; ``torch.compile`` and data-parallel wrappers are unwrapped.
        what: who asks, named in the message.
        advice: how to do without the graph.

    Raises:
        ValueError: the forward pass cannot be followed.
    """
    try:
        return _Tracer().trace(eager_module(model))
    except (fx.proxy.TraceError, TypeError, AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{what} needs a forward pass that torch.fx can follow; got {type(model).__name__}, where it cannot "
            f"({reason}); {advice}"
        ) from error


def module_calls(graph: fx.Graph, *, what: str, modules: frozenset[str]) -> dict[str, fx.Node]:
    """Return the one place where each of some modules is called, by name; one that is never called is left out.

    Args:
        graph: the graph.
        what: who asks, named in the message.
        modules: names of modules.

    Raises:
        ValueError: one is called in two places.
    """
    calls: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in modules:
            continue
        if node.target in calls:
            raise ValueError(
                f"{what} needs every layer to run once in a forward pass; got {node.target}, which runs twice; "
                "give each place a layer of its own"
            )
        calls[node.target] = node
    return calls
