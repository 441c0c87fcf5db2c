"""Recurrent batch normalization: a long short-term memory with statistics of each time step apart."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.nn.sequence_batch_norm import SequenceBatchNorm
from normlens.nn.weighted.base import Weighted, check_sizes

__all__ = ["BatchNormLSTM", "draw_orthogonal_", "lstm_step"]


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Move the cells of a long short-term memory by one time step.

    ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, beside it the open output gates ``sigmoid(o)``; the hidden state is
    ``sigmoid(o) tanh(c')``, with or without a normalization of ``c'``.

    Args:
        gates: ``(N, 4 H)``, the parts ``i, f, g, o`` in PyTorch's order.
        cell: ``c``, ``(N, H)``.
    """
    i, f, g, o = gates.chunk(4, 1)
    return torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g), torch.sigmoid(o)


def draw_orthogonal_(weight: Tensor, *, generator: torch.Generator) -> None:
    """Fill ``(4 H, inputs)`` with four orthogonal blocks, one per gate: ``Q Q^T`` or ``Q^T Q`` is 1.

    Args:
        weight: what is filled in place, in float64 and rounded.
        generator: the source of the numbers.
    """
    block = torch.empty(weight.shape[0] // 4, weight.shape[1], dtype=torch.float64, device=generator.device)
    with torch.no_grad():
        for gate in weight.chunk(4):
            gate.copy_(nn.init.orthogonal_(block, generator=generator))


class BatchNormLSTM(Weighted):
    r"""Long short-term memory with batch norm of the input's part, of the recurrent part and of the cell.

    ``(i, f, g, o) = BN_t(weight_ih x_t) + BN_t(weight_hh h) + bias``, ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``,
    ``h' = sigmoid(o) tanh(BN_t(c'))``. Gains and shifts are shared by all time steps, statistics are not: ``BN_t``
    takes those of the batch at step ``t`` in train mode and the running ones of step ``t`` in eval mode, from
    ``max_length`` on those of the last step that has any. The two gates' norms shift nothing, ``bias`` does. The gates
    are in PyTorch's order (the paper's is f, i, o, g; its published code's g, f, i, o). The norms' gains start at
    ``gamma``: the derivative of tanh at a normalized input is ``E[tanh'(gamma Z)]`` on average, 0.606 at 1 and 0.990 at
    0.1, so that at 0.1 hardly any unit saturates.

    Shapes: ``(T, N, input_size)`` to ``((T, N, hidden_size), (h, c))``, ``h`` and ``c`` of ``(N, hidden_size)`` after
    the last step; as ``torch.nn.LSTM``. Sequences of one batch have one length: nothing masks padding here.

    Valid in train mode from two sequences on. At step 0 ``h`` is 0 for all: the norm of the recurrent part then divides
    0 by ``sqrt(eps)``, and so does that of an input which is constant over the batch, with gradients up to ``gamma /
    sqrt(eps)`` times as large. ``h0_noise`` is the paper's remedy (0.1 for images read pixel by pixel); it is drawn
    from the global random state in train mode, as dropout is.

    Source: Cooijmans, Ballas, Laurent, Gülçehre and Courville, ICLR 2017, arXiv:1603.09025, section 3. The
    "permutation" of pixels in its published code is drawn with replacement and keeps 63 % of them.

    Args:
        input_size: features of one step.
        hidden_size: ``H``, the units.
        max_length: how many time steps have running statistics of their own.
        generator: the source of the weights, orthogonal for each gate.
        eps: added to the variances.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        gamma: where the gains of the three norms start.
        forget_bias: where the forget gates' part of ``bias`` starts; the rest starts at 0.
        h0_noise: standard deviation of normal noise on ``h`` before the first step, in train mode.
        device: of parameters and buffers.
        dtype: of parameters and buffers; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1, negative noise, a wrong input, or one sequence in train mode.
    """

    sensitivity: ClassVar[float] = 10.0  # three divisions by a standard deviation at every step

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        max_length: int,
        *,
        generator: torch.Generator,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        gamma: float = 0.1,
        forget_bias: float = 1.0,
        h0_noise: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "max_length": max_length}
        check_sizes(BatchNormLSTM, sizes)
        if not h0_noise >= 0:
            raise ValueError(f"BatchNormLSTM needs h0_noise of at least 0; got {h0_noise}; it is a standard deviation")
        self.input_size, self.hidden_size, self.max_length = input_size, hidden_size, max_length
        self.eps, self.momentum, self.gamma = eps, momentum, gamma
        self.forget_bias, self.h0_noise = forget_bias, h0_noise
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size, device=device, dtype=dtype))
        self.norm_ih = self._step_norm(4 * hidden_size, shifts=False, like=self.bias)
        self.norm_hh = self._step_norm(4 * hidden_size, shifts=False, like=self.bias)
        self.norm_cell = self._step_norm(hidden_size, shifts=True, like=self.bias)
        self.reset_parameters(generator)

    def _step_norm(self, features: int, *, shifts: bool, like: Tensor) -> SequenceBatchNorm:
        norm = SequenceBatchNorm(
            features,
            mode="frame",
            max_length=self.max_length,
            eps=self.eps,
            momentum=self.momentum,
            device=like.device,
            dtype=like.dtype,
        )
        if not shifts:
            norm.bias = None  # beside the bias of the gates it would be a direction in which the loss is flat
        return norm

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights anew, set gains and bias to where they start, and forget all batches."""
        draw_orthogonal_(self.weight_ih, generator=generator)
        draw_orthogonal_(self.weight_hh, generator=generator)
        with torch.no_grad():
            self.bias.zero_()
            self.bias[self.hidden_size : 2 * self.hidden_size] = self.forget_bias
            for norm in (self.norm_ih, self.norm_hh, self.norm_cell):
                norm.reset_parameters()
                if norm.weight is not None:
                    norm.weight.fill_(self.gamma)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map ``(T, N, input_size)`` to all hidden states and the last ``(h, c)``; in train mode statistics move.

        The norms of the recurrent part and of the cell are called without their hooks: what they do depends on the time
        step, which a hook cannot see.

        Args:
            x: the sequences, time first.
            state: ``h`` and ``c`` before the first step, ``(N, hidden_size)`` each; None for zeros (and noise).
        """
        self._check(x)
        wide = promote(x)
        given = self.norm_ih(promote(F.linear(wide, self.weight_ih.to(wide.dtype))).permute(1, 2, 0))
        given = given + self.bias.to(wide.dtype)[:, None]
        weight_hh = self.weight_hh.to(wide.dtype)
        h, c = self._start(wide) if state is None else (state[0].to(wide.dtype), state[1].to(wide.dtype))
        outputs = []
        for t, of_input in enumerate(given.unbind(2)):
            recurrent = self.norm_hh.forward(promote(F.linear(h, weight_hh)), first_step=t)
            c, gate = lstm_step(of_input + recurrent, c)
            h = gate * torch.tanh(self.norm_cell.forward(c, first_step=t))
            outputs.append(h)
        return torch.stack(outputs).to(x.dtype), (h.to(x.dtype), c.to(x.dtype))

    def _start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        zero = x.new_zeros(x.shape[1], self.hidden_size)
        noisy = self.training and self.h0_noise > 0
        return (zero + self.h0_noise * torch.randn_like(zero) if noisy else zero), zero

    def _check(self, x: Tensor) -> None:
        self.check_input(x, ("T", "N", "input_size"), dim=2, size=self.input_size)
        if len(x) < 1:
            raise ValueError(f"BatchNormLSTM needs at least one time step; got {tuple(x.shape)}; leave out empty ones")
        if self.training and x.shape[1] < 2:
            raise ValueError(
                f"BatchNormLSTM needs more than one sequence in train mode, to take variances over them; got "
                f"{tuple(x.shape)}; use a larger batch, or .eval()"
            )
