"""The correlation of two variables behind independent gates."""

from __future__ import annotations

from torch import Tensor

__all__ = ["gated_correlation"]


def gated_correlation(correlation: Tensor, offset_x: Tensor, offset_y: Tensor, *, keep_prob: float) -> Tensor:
    r"""Return the correlation of x and y after dropout, exactly.

    .. math:: \mathrm{corr}(\hat x,\hat y) = \frac{p\,c}{\sqrt{(1 + (1-p)m_x^2/s_x^2)(1 + (1-p)m_y^2/s_y^2)}}

    for gates that are open with probability p and independent of each other and of x and y. It is p times the one
    before only where both means are zero: a closed gate moves a value off its mean.

    Args:
        correlation: c, before the gates, of any shape.
        offset_x: mean over standard deviation of x, of a shape that broadcasts.
        offset_y: likewise of y.
        keep_prob: the probability p to be kept, not to be dropped.

    Raises:
        ValueError: keep_prob is not within (0, 1].
    """
    if not 0 < keep_prob <= 1:
        raise ValueError(f"keep_prob must be within (0, 1]; got {keep_prob}; pass 1 minus the rate of nn.Dropout")
    spread = (1 + (1 - keep_prob) * offset_x.square()) * (1 + (1 - keep_prob) * offset_y.square())
    return keep_prob * correlation / spread.sqrt()
