"""Key-value memory: high-dimensional keys compared by angle, sharpened so that unrelated ones become orthogonal."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.nn.weighted.base import check_sizes

__all__ = ["KeyValueMemory", "Quantize", "Sharpening", "attention", "bipolar", "soft_abs"]

Sharpening = Literal["softabs", "softmax"]
Quantize = Literal["bipolar", "binary"]


def soft_abs(similarity: Tensor, *, beta: float = 10.0) -> Tensor:
    """Sharpen similarities, ``1 / (1 + exp(-beta (a - 1/2))) + 1 / (1 + exp(-beta (-a - 1/2)))``, even in ``a``.

    At ``beta`` 10 it is 0.0134 at 0, 0.5000 at 1/2 and 0.9933 at 1: a loss on it pushes unrelated keys towards right
    angles, where a softmax would push them towards opposite ones.

    Source: Karunaratne et al., Nature Communications 12:2468, 2021, doi:10.1038/s41467-021-22364-0.

    Args:
        similarity: cosines.
        beta: the steepness.
    """
    return torch.sigmoid(beta * (similarity - 0.5)) + torch.sigmoid(beta * (-similarity - 0.5))


def bipolar(x: Tensor) -> Tensor:
    """Return the signs of the components, -1 or 1; that of 0 is 1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def attention(similarity: Tensor, *, sharpening: Sharpening = "softabs", beta: float = 10.0) -> Tensor:
    """Weigh keys by their similarity: ``w_i = e(a_i) / sum_j e(a_j)``, ``e`` :func:`soft_abs` or ``exp(beta a)``.

    Args:
        similarity: ``(N, M)``, cosines of queries and keys.
        sharpening: "softabs" or "softmax".
        beta: the steepness.
    """
    if sharpening == "softmax":
        return torch.softmax(beta * similarity, -1)
    sharp = soft_abs(similarity, beta=beta)
    return sharp / sharp.sum(-1, keepdim=True)


class KeyValueMemory(nn.Module):
    """Remember values under high-dimensional keys, and return the mean of those whose keys point as the query does.

    ``p = sum_i w_i v_i`` with ``w_i = e(a_i) / sum_j e(a_j)`` and ``a_i = cos(q, k_i)``; see :func:`attention`. Only
    angles count: keys and queries may have any length. Read with ``quantize``, queries and keys are replaced by the
    signs of their components (for normal components of correlation ``rho`` the cosine becomes ``(2 / pi) asin rho``),
    or by ``(1 + sign) / 2`` with ``a = 4 <q, k> / d - 1``, which needs dot products of zeros and ones only and is
    exact where half of the components of both are 1.

    Additive noise on the stored components is that of analog memory: with components of root mean square 1 (as bipolar
    keys have, and to which real ones are scaled) and noise of deviation ``s`` the cosine becomes
    ``rho / sqrt(1 + s^2)`` up to ``O(1 / sqrt(d))``, and the nearest of ``M`` keys stays the right one while
    ``sqrt(d) rho / sqrt(1 + s^2)`` is well above ``sqrt(2 log M)``. Gain noise does nothing.

    Shapes: keys ``(num_keys, key_dim)``, values ``(num_keys, num_values)``, one-hot for classes; queries ``(N,
    key_dim)`` to ``(N, num_values)``.

    Valid for any number of written keys from one on; rows never written take no part. What is written is detached: to
    train what makes the keys, use :func:`attention` on their cosines.

    Source: Karunaratne, Schmuck, Le Gallo, Cherubini, Benini, Sebastian and Rahimi, Nature Communications 12:2468,
    2021, doi:10.1038/s41467-021-22364-0.

    Args:
        num_keys: places.
        key_dim: ``d``, components of a key; hundreds of them.
        num_values: components of a value, e.g. classes.
        sharpening: "softabs" or "softmax".
        beta: the steepness of the sharpening.
        device: of the buffers.
        dtype: of the buffers; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1, another sharpening, or a steepness that is not positive.
    """

    keys: Tensor
    values: Tensor
    written: Tensor

    def __init__(
        self,
        num_keys: int,
        key_dim: int,
        num_values: int,
        *,
        sharpening: Sharpening = "softabs",
        beta: float = 10.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_keys": num_keys, "key_dim": key_dim, "num_values": num_values}
        check_sizes(KeyValueMemory, sizes)  # type: ignore[arg-type]  # it reads the name alone
        if sharpening not in get_args(Sharpening):
            raise ValueError(
                f"KeyValueMemory needs sharpening to be 'softabs' or 'softmax'; got {sharpening!r}; choose one of them"
            )
        if not beta > 0:
            raise ValueError(f"KeyValueMemory needs a positive beta; got {beta}; use 10.0")
        self.num_keys, self.key_dim, self.num_values = num_keys, key_dim, num_values
        self.sharpening, self.beta = sharpening, beta
        self.register_buffer("keys", torch.zeros(num_keys, key_dim, device=device, dtype=dtype))
        self.register_buffer("values", torch.zeros(num_keys, num_values, device=device, dtype=dtype))
        self.register_buffer("written", torch.zeros(num_keys, device=device, dtype=torch.bool))

    @torch.no_grad()
    def write(self, keys: Tensor, values: Tensor) -> None:
        """Put keys with their values into the next free places.

        Args:
            keys: ``(M, key_dim)``.
            values: ``(M, num_values)``.

        Raises:
            ValueError: other shapes, or more keys than places are free.
        """
        if keys.shape != (len(values), self.key_dim) or values.shape != (len(keys), self.num_values):
            raise ValueError(
                f"KeyValueMemory needs keys (M, {self.key_dim}) and values (M, {self.num_values}); got "
                f"{tuple(keys.shape)} and {tuple(values.shape)}; one value for each key, one-hot for classes"
            )
        free = (~self.written).nonzero().flatten()
        if len(keys) > len(free):
            raise ValueError(
                f"KeyValueMemory needs a free place for each key; got {len(keys)} keys for {len(free)} of "
                f"{self.num_keys} places; call clear(), or build it with more"
            )
        places = free[: len(keys)]
        self.keys[places] = keys.to(self.keys)
        self.values[places] = values.to(self.values)
        self.written[places] = True

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything."""
        for buffer in (self.keys, self.values, self.written):
            buffer.zero_()

    def read(
        self,
        query: Tensor,
        *,
        quantize: Quantize | None = None,
        noise_std: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the attended mean of the values, ``(N, num_values)``.

        Args:
            query: ``(N, key_dim)``.
            quantize: None for real components, "bipolar" or "binary".
            noise_std: standard deviation of normal noise on each stored component, the same for all queries of a call;
                stored are keys of root mean square 1, of -1 and 1, or of 0 and 1.
            generator: the source of that noise; needed where ``noise_std`` is not 0.

        Raises:
            ValueError: a query of another shape, nothing written, another ``quantize``, or noise without a generator.
        """
        self._check(query, quantize)
        similarity = self._similarity(promote(query), quantize, noise_std, generator)
        kept = similarity[:, self.written]
        weights = attention(kept, sharpening=self.sharpening, beta=self.beta)
        return (weights @ self.values[self.written].to(weights.dtype)).to(query.dtype)

    def forward(self, query: Tensor) -> Tensor:
        """Read with real components and without noise."""
        return self.read(query)

    def extra_repr(self) -> str:
        """List the settings by the names the constructor takes."""
        names = ("num_keys", "key_dim", "num_values", "sharpening", "beta")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _check(self, query: Tensor, quantize: Quantize | None) -> None:
        if query.dim() != 2 or query.shape[1] != self.key_dim or not query.is_floating_point():
            raise ValueError(
                f"KeyValueMemory needs floating-point queries (N, {self.key_dim}); got {query.dtype} of shape "
                f"{tuple(query.shape)}; flatten them, or build the memory for that key_dim"
            )
        if not bool(self.written.any()):
            raise ValueError("KeyValueMemory needs at least one key to read; got none; call write(keys, values) first")
        if quantize is not None and quantize not in get_args(Quantize):
            raise ValueError(
                f"KeyValueMemory needs quantize to be None, 'bipolar' or 'binary'; got {quantize!r}; choose one of them"
            )

    def _similarity(
        self, query: Tensor, quantize: Quantize | None, noise_std: float, generator: torch.Generator | None
    ) -> Tensor:
        keys = self.keys.to(query.dtype)
        if quantize is None:
            keys = math.sqrt(self.key_dim) * F.normalize(keys, dim=1)
        else:
            query, keys = bipolar(query), bipolar(keys)
        if quantize == "binary":
            query, keys = (1 + query) / 2, (1 + keys) / 2
        keys = keys + self._noise(noise_std, generator).to(keys)
        if quantize == "binary":
            return 4 * query @ keys.T / self.key_dim - 1
        return F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T

    def _noise(self, noise_std: float, generator: torch.Generator | None) -> Tensor:
        if noise_std == 0:
            return torch.zeros(())
        if generator is None:
            raise ValueError(
                f"KeyValueMemory needs a generator for noise; got noise_std={noise_std} without one; "
                "pass generator=torch.Generator().manual_seed(0)"
            )
        return noise_std * torch.randn(self.keys.shape, generator=generator, device=generator.device)
