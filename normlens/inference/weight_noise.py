"""WeightNoise: the weights as a memory array gives them back, and exactly as they were afterwards."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normlens.nn.functional import promote

__all__ = ["NoiseKind", "Resample", "WeightNoise"]

NoiseKind = Literal["gaussian", "multiplicative", "uniform"]
Resample = Literal["once", "forward"]


class WeightNoise:
    r"""Noise on the weights of a model inside a ``with`` block: :math:`\tilde W = W + n`.

    ============== ====================================================== ==========================
    kind           :math:`n`, independent for each weight                 its standard deviation
    ============== ====================================================== ==========================
    gaussian       :math:`\mathcal N(0, (\eta \max|W|)^2)`                :math:`\eta \max|W|`
    multiplicative :math:`W \odot \mathcal N(0, \eta^2)`                  :math:`\eta |W|`
    uniform        :math:`\mathcal U(-\eta \max|W|, \eta \max|W|)`        :math:`\eta \max|W| / \sqrt 3`
    ============== ====================================================== ==========================

    The maximum is that of each tensor. Noisy are all parameters with at least two dimensions, which is what a memory
    array holds: matrices and kernels, not biases and the scales of a normalization.

    ``resample="once"`` is programming noise: one draw for the life of this object, the same in each of its blocks.
    ``resample="forward"`` is read noise: a new draw before every call of the model (of the whole one: a part of it that
    is called alone sees the last draw). Noise is drawn on the CPU in float32 or float64: the same on every device.

    At the end of the block, also after an exception, the weights are what they were, bit by bit; what has been done to
    them inside is undone with it.

    Source: Tsai et al., arXiv:2007.03230; that ``scale`` counts in ``max|W|`` is recalled, the uniform form is ours.

    Args:
        model: whose weights.
        kind: see above.
        scale: :math:`\eta`, at least 0.
        resample: see above.
        generator: of the noise; it is drawn from once, here.

    Raises:
        ValueError: an unknown kind or ``resample``, a negative or infinite scale, or no parameter of two dimensions; or
            the block is entered twice.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: NoiseKind = "gaussian",
        scale: float = 0.1,
        *,
        resample: Resample = "once",
        generator: torch.Generator,
    ) -> None:
        self.model, self.kind, self.scale, self.resample = model, kind, scale, resample
        self._check()
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        self._seed = int(seed)
        self._generator = torch.Generator().manual_seed(self._seed)
        self._clean: list[tuple[Tensor, Tensor]] = []
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Self:
        """Put the noise on."""
        if self._clean:
            raise ValueError("WeightNoise needs one block at a time; it is on already; make a second one of its own")
        self._clean = [(weight, weight.detach().clone()) for weight in _matrices(self.model)]
        if self.resample == "once":
            self._generator.manual_seed(self._seed)
        else:
            self._handle = self.model.register_forward_pre_hook(self._before)
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the weights back."""
        if self._handle is not None:
            self._handle.remove()
        for weight, clean in self._clean:
            weight.data.copy_(clean)
        self._clean, self._handle = [], None

    def _before(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        for weight, clean in self._clean:
            wide = promote(clean)
            # `.data`: a plain copy_ would bump the version counter and break a graph that the user still holds.
            weight.data.copy_(wide + self._noise(wide))

    def _noise(self, weight: Tensor) -> Tensor:
        largest = weight.abs().max() if weight.numel() else weight.new_zeros(())
        unit = torch.empty(weight.shape, dtype=weight.dtype)
        if self.kind == "uniform":
            return self.scale * largest * unit.uniform_(-1, 1, generator=self._generator).to(weight.device)
        normal = unit.normal_(generator=self._generator).to(weight.device)
        return self.scale * (weight if self.kind == "multiplicative" else largest) * normal

    def _check(self) -> None:
        for name, value, known in (("kind", self.kind, NoiseKind), ("resample", self.resample, Resample)):
            if value not in get_args(known):
                raise ValueError(f"WeightNoise needs {name} to be one of {get_args(known)}; got {value!r}; choose one")
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"WeightNoise needs a finite scale of at least 0; got {self.scale}; 0 is no noise")
        if not _matrices(self.model):
            raise ValueError(
                "WeightNoise needs a floating-point parameter with two dimensions or more; the model has none; "
                "pass the model that holds the weights"
            )


def _matrices(model: nn.Module) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.dim() >= 2 and weight.is_floating_point()]
