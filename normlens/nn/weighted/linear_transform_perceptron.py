"""Linear transformations in perceptrons: hidden units of zero mean and zero slope, and shortcuts that compensate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.nn.functional import cast, promote
from normlens.nn.weighted.base import Weighted, check_sizes, draw_normal_

__all__ = ["LinearTransformPerceptron"]


class LinearTransformPerceptron(Weighted):
    """One hidden layer whose units have zero mean and zero slope over the data, beside a linear shortcut.

    ``y = A (f(s) + alpha s + beta) + C x + c`` with ``s = B x + b``. Over the samples given to
    :meth:`update_transform`, ``alpha_i = -mean f'(s_i)`` and ``beta_i = -mean(f(s_i) + alpha_i s_i)``; they are not
    learned, and the shortcut takes up what they change, so that the map stays what it was. Train and eval mode are
    alike; nothing moves in ``forward``.

    What the hidden layer does on average is thus left to the shortcut, and the Fisher matrix of a squared loss loses
    its entries between ``c`` and ``A`` and between ``c`` and ``b``, for Gaussian ``x`` also between ``C`` and ``A``.

    Shapes: ``(N, in_features)`` to ``(N, out_features)``. ``B`` and ``b`` are ``hidden_weight`` and ``hidden_bias``,
    ``A`` is ``output_weight``, ``C`` and ``c`` are ``shortcut_weight`` and ``shortcut_bias``; ``alpha`` and ``beta``
    are buffers.

    Valid for any batch size in ``forward``; mean and slope are zero over the samples of the last update and with the
    ``B`` and ``b`` of that time, so update every few steps. Transformations and shortcuts start at zero.

    Source: Raiko, Valpola and LeCun, AISTATS 2012, PMLR 22:924-932.

    Args:
        in_features: features in.
        hidden_features: nonlinear units.
        out_features: features out.
        generator: the source of the weights, ``B ~ N(0, 1 / in_features)`` and ``A ~ N(0, 1 / hidden_features)``.
        has_bias: whether the hidden units have ``b``; it is zero at the start, as ``c`` is.
        activation: elementwise and differentiable, without randomness.
        device: of parameters and buffers.
        dtype: of parameters and buffers; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1, or a wrong number of features.
    """

    hidden_bias: nn.Parameter | None
    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        generator: torch.Generator,
        has_bias: bool = True,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "hidden_features": hidden_features, "out_features": out_features}
        check_sizes(type(self), sizes)
        self.in_features, self.hidden_features, self.out_features = in_features, hidden_features, out_features
        self.has_bias, self.activation = has_bias, activation

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        self.hidden_weight = nn.Parameter(zeros(hidden_features, in_features))
        self.register_parameter("hidden_bias", nn.Parameter(zeros(hidden_features)) if has_bias else None)
        self.output_weight = nn.Parameter(zeros(out_features, hidden_features))
        self.shortcut_weight = nn.Parameter(zeros(out_features, in_features))
        self.shortcut_bias = nn.Parameter(zeros(out_features))
        self.register_buffer("alpha", zeros(hidden_features))
        self.register_buffer("beta", zeros(hidden_features))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw ``B`` and ``A`` anew; biases, shortcut and transformations become zero."""
        draw_normal_(self.hidden_weight, std=1 / math.sqrt(self.in_features), generator=generator)
        draw_normal_(self.output_weight, std=1 / math.sqrt(self.hidden_features), generator=generator)
        for tensor in (self.hidden_bias, self.shortcut_weight, self.shortcut_bias, self.alpha, self.beta):
            if tensor is not None:
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        wide, hidden = promote(x), self.hidden(x)
        shortcut = F.linear(wide, self.shortcut_weight.to(wide.dtype), self.shortcut_bias.to(wide.dtype))
        return (F.linear(hidden, self.output_weight.to(wide.dtype)) + shortcut).to(x.dtype)

    def hidden(self, x: Tensor) -> Tensor:
        """Return the transformed units ``f(s) + alpha s + beta``, ``(N, hidden_features)``, in at least float32."""
        s = self._projected(x)
        return self.activation(s) + self.alpha.to(s.dtype) * s + self.beta.to(s.dtype)

    @torch.no_grad()
    def update_transform(self, x: Tensor) -> None:
        """Make mean and mean slope of the hidden units zero over ``x``, and the shortcut such that the map stays.

        ``C -= A diag(d_alpha) B`` and ``c -= A (d_beta + d_alpha b)``, in place and exact up to the rounding of ``C``
        and ``c``. Call it between optimizer steps, every one or every few, on the batch or on more; never between a
        forward pass and its backward pass, which would find its weights changed.

        Args:
            x: samples, ``(N, in_features)``, at least one.

        Raises:
            ValueError: no sample, or one that makes a mean infinite or nan; nothing is changed then.
        """
        with torch.autocast(x.device.type, enabled=False):
            s = self._projected(x)
            value, slope = self._response(s)
            alpha = -slope.mean(0)
            # the shortcut must answer to what is stored: alpha and beta as rounded to the dtype of the buffers
            alpha = alpha.to(self.alpha.dtype).to(s.dtype)
            beta = -(value + alpha * s).mean(0)
            self._check_finite(x, alpha, beta)
            self._compensate(alpha - self.alpha, beta.to(self.beta.dtype) - self.beta)
        self.alpha.copy_(alpha)
        self.beta.copy_(beta)

    def _projected(self, x: Tensor) -> Tensor:
        self.check_input(x, ("N", "in_features"), dim=1, size=self.in_features)
        wide = promote(x)
        return promote(F.linear(wide, self.hidden_weight.to(wide.dtype), cast(self.hidden_bias, wide)))

    def _response(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative of the activation."""
        with torch.enable_grad():
            leaf = s.detach().requires_grad_()
            value = self.activation(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope

    def _compensate(self, d_alpha: Tensor, d_beta: Tensor) -> None:
        hidden, output = promote(self.hidden_weight), promote(self.output_weight)
        d_alpha, d_beta = d_alpha.to(hidden.dtype), d_beta.to(hidden.dtype)
        constant = d_beta if self.hidden_bias is None else d_beta + d_alpha * self.hidden_bias
        self.shortcut_weight.sub_((output * d_alpha) @ hidden)
        self.shortcut_bias.sub_(output @ constant)

    def _check_finite(self, x: Tensor, alpha: Tensor, beta: Tensor) -> None:
        if not (alpha.isfinite().all() and beta.isfinite().all()):
            raise ValueError(
                f"LinearTransformPerceptron needs at least one sample, and finite ones, to take means over; got "
                f"{tuple(x.shape)} with {int((~x.isfinite()).sum())} numbers that are not finite; nothing was changed, "
                "look for what made them"
            )
