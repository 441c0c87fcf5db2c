"""ENorm: after every step the function stays and its weights become as small as rescaling can make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.optim.channel_units import ChannelUnit, channel_units, rescale
from normlens.optim.rescaling_graph import Stream
from normlens.optim.transform import Transform, owned_parameters

__all__ = ["EquiNormalization", "equi_normalize"]

_POWERS: dict[str, Literal[1, 2]] = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
"""With which power of the gradient an optimizer's buffer grows: of SGD, Adam, AdamW and their relatives."""


@dataclass(frozen=True)
class _Balance:
    """How the two sides of a channel are compared."""

    p: float
    c: float
    bias: bool
    bn: Literal["fold", "ignore"]

    def __post_init__(self) -> None:
        if not (self.p > 0 and self.c > 0):
            raise ValueError(
                f"EquiNormalization needs p and c above 0; got p={self.p}, c={self.c}; the paper has p=2 and c=1"
            )
        if self.bn not in {"fold", "ignore"}:
            raise ValueError(f"EquiNormalization needs bn='fold' or 'ignore'; got {self.bn!r}; choose one of the two")


class EquiNormalization(Transform):
    r"""Rescale the channels between layers after each step, to the smallest weights with the same function (ENorm).

    One sweep over the streams of a network, in order: each channel ``i`` between two weight layers (with positively
    homogeneous functions between them) is multiplied by

    .. math:: d_i = \sqrt{\frac{\|W_{k+1}[:, i]\|_p}{c\,\|W_k[i, :]\|_p}}, \qquad
        W_k[i, :] \mathrel{*}= d_i, \quad b_k[i] \mathrel{*}= d_i, \quad W_{k+1}[:, i] \mathrel{/}= d_i

    with the norms as the sweep has left them: exact coordinate descent, so that with ``c = 1`` the sum of all
    ``|w|^p`` never grows and tends to its only minimum, where both sides of every channel are equal. With ``c`` the
    right side tends to ``c`` times the left one. Channels with a zero side are left alone. The gradients of what is
    multiplied by ``d`` are divided by it, and so are the optimizer's momentum and first moments; second moments are
    divided by ``d^2``. A weight decay that went into a momentum is then treated as a gradient, as in the paper's code.

    With ``bn="fold"`` a batch norm on the way has ``weight``, ``bias`` and ``running_mean`` multiplied by ``d`` and
    ``running_var`` by ``d^2``. Its ``eps`` stays: the function is exact for ``eps = 0`` and moves by about ``eps / (2
    var) |1 - 1 / d^2|``, relative, otherwise. With ``bn="ignore"`` it is left alone, as in the paper's code, and the
    function changes.

    Units: none. Without state of its own. Valid for SGD with momentum, Adam, AdamW and others with the same buffers;
    bit-identical after a resumption.

    Source: P. Stock et al., Equi-normalization of Neural Networks, ICLR 2019, arXiv:1902.10416. The published code
    takes each pair's norms from before the preceding pair was rescaled (a slower way to the same point), and keeps
    biases out of the norms, which ``bias=False`` does too.

    Args:
        model: the module that is trained.
        optimizer: the optimizer of all the weights that are rescaled.
        streams: what is rescaled together; None for :func:`~normlens.optim.find_streams`.
        p: of the norms.
        c: asymmetry, the right side's norm over the left one's at balance.
        bias: whether biases count in the norm of the left side; they are rescaled in any case.
        bn: what becomes of batch norms on the way.

    Raises:
        ValueError: streams that cannot be found or rescaled, weights that the optimizer does not hold, an optimizer
            with other buffers, or settings out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        streams: Sequence[Stream] | None = None,
        *,
        p: float = 2.0,
        c: float = 1.0,
        bias: bool = False,
        bn: Literal["fold", "ignore"] = "fold",
    ) -> None:
        self.balance = _Balance(p, c, bias, bn)
        self._units = channel_units(model, streams, fold=bn == "fold")
        _check_owned(self._units, model, optimizer)
        super().__init__(model, optimizer)

    def after_step(self) -> None:
        """Make one sweep, and carry the optimizer's buffers along."""
        for unit in self._units:
            for tensor, factor in rescale(unit, _scale(unit, self.balance)):
                _divide_buffers(self.optimizer.state.get(tensor, {}), tensor, factor)


@torch.no_grad()
def equi_normalize(
    model: nn.Module,
    streams: Sequence[Stream] | None = None,
    *,
    sweeps: int = 1,
    p: float = 2.0,
    c: float = 1.0,
    bias: bool = False,
    bn: Literal["fold", "ignore"] = "fold",
) -> nn.Module:
    """Make sweeps of :class:`EquiNormalization` over a model, in place, and return the model.

    Args:
        model: the module.
        streams: what is rescaled together; None for :func:`~normlens.optim.find_streams`.
        sweeps: how many; each is exact coordinate descent.
        p: of the norms.
        c: asymmetry, the right side's norm over the left one's at balance.
        bias: whether biases count in the norm of the left side; they are rescaled in any case.
        bn: what becomes of batch norms on the way.

    Raises:
        ValueError: streams that cannot be found or rescaled, or settings out of range.

    Source: P. Stock et al., Equi-normalization of Neural Networks, ICLR 2019, arXiv:1902.10416.
    """
    balance = _Balance(p, c, bias, bn)
    units = channel_units(model, streams, fold=bn == "fold")
    for _ in range(sweeps):
        for unit in units:
            rescale(unit, _scale(unit, balance))
    return model


def _check_owned(units: Sequence[ChannelUnit], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    owned = {id(parameter) for parameter in owned_parameters(model, optimizer).values()}
    for layer in (layer for unit in units for layer in (*unit.writers, *unit.readers)):
        if owned and id(layer.weight) not in owned:
            raise ValueError(
                "EquiNormalization needs an optimizer of all the weights it rescales; got one without that of "
                f"{layer}; add it, or name the streams without that layer"
            )


def _scale(unit: ChannelUnit, balance: _Balance) -> Tensor:
    """Return d, 1 for a channel with a side of zero."""
    left = [_norm(layer.weight.flatten(1), balance.p) for layer in unit.writers]
    if balance.bias:
        left += [promote(layer.bias).abs() for layer in unit.writers if layer.bias is not None]
    right = [_column_norm(layer.weight, unit.channels, balance.p) for layer in unit.readers]
    scale = (_together(right, balance.p) / (balance.c * _together(left, balance.p))).sqrt_()
    return scale.nan_to_num_(nan=1.0, posinf=1.0).masked_fill_(scale == 0, 1.0)


def _column_norm(weight: Tensor, channels: int, p: float) -> Tensor:
    """Return the norm of all entries that read each channel: over contiguous entries first, which is faster."""
    columns = weight if weight.shape[1:] == (channels,) else _norm(weight.reshape(len(weight), channels, -1), p)
    return _norm(columns.T, p)


def _norm(rows: Tensor, p: float) -> Tensor:
    """Return the p-norm over the last dimension, in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(promote(rows), p, dim=-1)
    return norm


def _together(norms: list[Tensor], p: float) -> Tensor:
    """Return the norm of several vectors end to end from the norm of each."""
    return norms[0] if len(norms) == 1 else _norm(torch.stack(norms, -1), p)


def _divide_buffers(state: Mapping[str, Any], parameter: Tensor, factor: Tensor) -> None:
    for name, buffer in state.items():
        if not isinstance(buffer, Tensor) or buffer.shape != parameter.shape or not buffer.dim():
            continue
        if name not in _POWERS:
            raise ValueError(
                f"EquiNormalization needs an optimizer whose buffers it knows ({', '.join(_POWERS)}); got {name!r}; "
                "use SGD, Adam or AdamW"
            )
        buffer.div_(factor if _POWERS[name] == 1 else factor.square())
