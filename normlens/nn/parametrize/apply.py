"""One reparametrization on every linear and convolution weight of a model."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrize

from normlens.nn.parametrize.base import FanInError

__all__ = ["apply_to_weights"]


def apply_to_weights(model: nn.Module, reparametrize: Callable[[nn.Module], nn.Module]) -> list[str]:
    """Put a reparametrization on the weight of every ``torch.nn.Linear`` and ``Conv1d`` to ``Conv3d`` of a model.

    ``layer.weight = f(stored)`` with ``f`` such as :func:`normlens.nn.parametrize.weight_norm`; to set its options,
    give ``functools.partial(unit_norm, dim=1)``. Build the optimizer afterwards: parameters may be new.

    Left alone are transposed convolutions, whose filters lie otherwise, weights with a reparametrization already, and
    those whose filters have too few entries, such as depthwise convolutions of a single pixel; of these it warns.

    Source: :mod:`torch.nn.utils.parametrize`.

    Args:
        model: changed in place.
        reparametrize: from a layer to the same layer, as the functions of this package.

    Returns:
        The names of the layers it was put on, in the order of the model.

    Raises:
        ValueError: a weight belongs to two layers, which would no longer share it (nothing has been changed then), or
            ``reparametrize`` refuses a layer, which is named (those before it are changed).
    """
    layers = {name: module for name, module in model.named_modules() if _is_plain(module)}
    _check_untied(model, layers)
    done, refused = [], []
    for name, layer in layers.items():
        try:
            reparametrize(layer)
        except FanInError as error:
            refused.append(f"{name}: {error}")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        else:
            done.append(name)
    if refused:
        warnings.warn("left as they are: " + "; ".join(refused), UserWarning, stacklevel=2)
    return done


def _is_plain(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, kinds) and not parametrize.is_parametrized(module, "weight")


def _check_untied(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in layers.items():
        places = names[id(layer.weight)]
        # one layer in two places is no tie: it keeps its weight to itself
        if len({id(modules[place.rpartition(".")[0]]) for place in places}) > 1:
            raise ValueError(
                f"apply_to_weights needs every weight to belong to one layer; got one tensor for "
                f"{' and '.join(places)}; untie them, or reparametrize the others by hand and leave {name} as it is"
            )
