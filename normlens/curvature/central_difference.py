"""CentralDifference: H v from gradients on either side, for a model that has no second derivative to ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.batch import batch_size, first_samples
from normlens.curvature.layout import ParameterLayout
from normlens.curvature.product import HessianProduct, checked_loss
from normlens.risk import EmpiricalRisk
from normlens.typing import Batch

__all__ = ["CentralDifference"]

_WIDEST = 0.1  # of |θ|: the first step that is tried
_WIDEST_KINKED = 1e-6  # where kinks lie: only in float64, and small enough to pass few of them
_RISEN = 30.0  # times the least disagreement so far: then rounding has taken over and smaller steps bring nothing
_REFUSED = 0.1  # two steps that differ by more than this tell nothing of a derivative
_SHRINKS = 3  # times a kinked network's step is divided by 16 where a kink lay between the points
_TROUBLED = 1e-3  # a disagreement that says so
_FEW = 16  # samples: a single unit that switches is not lost in the sum over many
_HALVINGS = 14  # from ±|θ|/4 to 3e-5 |θ|, 250 roundings of float32
_JUMP = 8.0  # times the change over the interval beside it: about 1 for what is smooth, and for rounding


class CentralDifference(HessianProduct):
    r"""v -> H v by central differences of gradients, at two steps and extrapolated (Richardson 1911).

    .. math:: D_h = \frac{g(\theta + h \hat v) - g(\theta - h \hat v)}{2h}, \qquad
        H \hat v \approx \frac{4 D_h - D_{2h}}{3}, \qquad \text{error} \le \tfrac43 \lVert D_h - D_{2h} \rVert

    The bound is generous where truncation decides and just right where rounding does. The step is the one at which
    two scales agree best along a random direction. Four gradients a product; a dozen or two to find the step. Only for
    models without a double backward: the other ways are exact.

    A gradient that jumps, as that of a rectifier network does, has no derivative that two points could tell: their
    difference counts every jump between them and is wrong by the same amount, seen 6 to 21 %, at every step that
    float32 allows. Jumps are looked for by bisection of a line and refused in float32; in float64 the step is small
    enough to pass between them, and a product that passed one is formed again with a smaller step.

    Args:
        risk: model, loss and mode.
        layout: the order of the parameters.
        batch: the batch.

    Attributes:
        step: h, in units of the parameters.
        kinked: whether the gradient jumps near the parameters.

    Raises:
        ValueError: the gradient jumps, in less than float64, or differences at two steps do not agree.
    """

    def __init__(self, risk: EmpiricalRisk, layout: ParameterLayout, batch: Batch) -> None:
        super().__init__(risk, layout, batch)
        self._theta = layout.flatten(risk.parameters)
        self._scale = float(self._theta.double().norm()) or 1.0
        self._largest, self._wrong = 0.0, 0.0
        direction = _unit(torch.randn(layout.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        direction = direction.to(self._theta)
        self.kinked = (jump := self._jump(direction)) > _JUMP
        if self.kinked and layout.dtype != torch.float64:
            raise ValueError(
                f"differences of gradients need a gradient without jumps in {_name(layout.dtype)}; along a line it "
                f"changes {jump:.0f} times as much within 3e-5 of |theta| as beside it, as a rectifier network's does: "
                "use .double() on model and data, a smooth activation, or operations with a double backward"
            )
        self.step, disagreement = self._choose(direction)
        if not disagreement <= _REFUSED:
            raise ValueError(
                f"differences of gradients at two steps must agree to {_REFUSED:.0%}; at the best step, "
                f"{self.step:.1e}, they differ by {disagreement:.0%} in {_name(layout.dtype)}: use .double() on model "
                "and data, or operations with a double backward"
            )

    @property
    def error(self) -> float:
        """The largest error of a product with a unit vector so far, over the largest such product."""
        return self._wrong / self._largest if self._largest else 0.0

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""
        size = float(v.double().norm())
        if size == 0:
            return torch.zeros_like(v)
        unit = (v.double() / size).to(self._theta)
        product, error = self._extrapolated(unit, self.step)
        for shrink in range(1, _SHRINKS + 1 if self.kinked else 1):
            if error <= _TROUBLED * max(float(product.norm()), self._largest):
                break
            product, error = min((product, error), self._extrapolated(unit, self.step / 16**shrink), key=lambda p: p[1])
        self._largest = max(self._largest, float(product.norm()))
        self._wrong = max(self._wrong, error)
        return (product * size).to(v)

    def _extrapolated(self, unit: Tensor, step: float) -> tuple[Tensor, float]:
        """Return H times a unit vector and its error, in float64."""
        near, far = self._difference(unit, step), self._difference(unit, 2 * step)
        return (4 * near - far) / 3, float((near - far).norm()) * 4 / 3

    def _choose(self, unit: Tensor) -> tuple[float, float]:
        """Halve the step as long as that may help; return the best one and the relative disagreement there."""
        step = (_WIDEST_KINKED if self.kinked else _WIDEST) * self._scale
        least = torch.finfo(self.layout.dtype).eps ** 0.5 * self._scale
        far, best = self._difference(unit, step), (step, torch.inf)
        while step / 2 >= least:
            step /= 2
            near = self._difference(unit, step)
            size, apart = float(near.norm()), float((near - far).norm())
            disagreement = apart / size if size else 0.0
            if disagreement < best[1]:
                best = (step, disagreement)
            elif disagreement > _RISEN * best[1]:
                break
            far = near
        return best

    def _difference(self, unit: Tensor, step: float) -> Tensor:
        plus, minus = (self._gradient(self._theta + s * unit, self.batch).double() for s in (step, -step))
        return (plus - minus) / (2 * step)

    def _jump(self, unit: Tensor) -> float:
        """Follow the largest change of the gradient into a short interval; compare it with that of its neighbors."""
        few = first_samples(self.batch, _FEW) if batch_size(self.batch) > _FEW else self.batch

        def gradient(t: float) -> Tensor:
            return self._gradient(self._theta + t * unit, few).double()

        low, high = -self._scale / 4, self._scale / 4
        left, right = gradient(low), gradient(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            between = gradient(middle)
            if float((between - left).norm()) >= float((right - between).norm()):
                high, right = middle, between
            else:
                low, left = middle, between
        change, width = float((right - left).norm()), high - low
        beside = min(float((gradient(low - width) - left).norm()), float((gradient(high + width) - right).norm()))
        rounding = 10 * torch.finfo(self.layout.dtype).eps * float(left.norm())
        return change / max(beside, rounding, 1e-300)

    def _gradient(self, at: Tensor, batch: Batch) -> Tensor:
        theta = {name: part.clone().requires_grad_() for name, part in self.layout.unflatten(at).items()}
        with torch.enable_grad():
            loss = checked_loss(self.risk.batch_loss(theta, batch))
            found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True, materialize_grads=True)
        return self.layout.flatten(dict(zip(theta, found, strict=True)))


def _unit(v: Tensor) -> Tensor:
    return torch.div(v, v.norm())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
