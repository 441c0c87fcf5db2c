"""LinearOperator: a symmetric matrix that is known by its products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from scipy.sparse.linalg import LinearOperator as SciPyOperator
from torch import Tensor

__all__ = ["DenseOperator", "LinearOperator", "deflate", "precondition", "restrict"]


class LinearOperator(ABC):
    """A real symmetric n x n matrix A, given by v -> A v.

    ``A @ v`` takes ``(n,)`` or ``(n, k)`` of any floating dtype, forms the product in the operator's own dtype and
    returns it in the dtype of ``v``: a recurrence may run in float64 over a float32 network.

    Args:
        n: the number of rows.
        dtype: in which products are formed.
        device: where they are formed.
        parts: the operators that it is made of.
    """

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device, parts: Sequence[LinearOperator] = ()) -> None:
        self.shape = (n, n)
        self.dtype = dtype
        self.device = device
        self._parts = tuple(parts)

    @property
    def error(self) -> float:
        """The relative error of a product beyond the rounding of its dtype: of its worst part; 0 for derivatives."""
        return max((part.error for part in self._parts), default=0.0)

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """Return A v for one vector ``(n,)`` in the operator's dtype and on its device."""

    def transposed(self, v: Tensor) -> Tensor:
        """Return A' v for one vector: A v again, but for a preconditioner that is not symmetric."""
        return self.matvec(v)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return A v for ``(n,)`` or ``(n, k)``.

        Raises:
            ValueError: the shape does not fit.
        """
        n = self.shape[0]
        if v.ndim not in (1, 2) or v.shape[0] != n:
            raise ValueError(f"a product needs a vector of shape ({n},) or ({n}, k); got {tuple(v.shape)}")
        own = v.to(self.device, self.dtype)
        if v.ndim == 1:
            return self.matvec(own).to(v)
        columns = [self.matvec(own[:, j]) for j in range(v.shape[1])]
        return (torch.stack(columns, 1) if columns else own).to(v)

    def dense(self) -> Tensor:
        """Return the matrix itself, (n, n), from n products and made exactly symmetric."""
        matrix = self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)
        return (matrix + matrix.T) / 2

    def to_scipy(self) -> SciPyOperator:
        """Return the same operator for SciPy, in float64 on NumPy arrays."""

        def matvec(v: object) -> object:
            return (self @ torch.as_tensor(v, dtype=torch.float64).reshape(-1)).cpu().numpy()

        return SciPyOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype="float64")

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, other)

    def __mul__(self, factor: float) -> LinearOperator:
        return _Scaled(self, float(factor))

    __rmul__ = __mul__


class DenseOperator(LinearOperator):
    """The operator of a matrix that is there; for tests and small problems.

    Args:
        matrix: (n, n), symmetric.

    Raises:
        ValueError: it is not square.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"an operator needs a square matrix; got shape {tuple(matrix.shape)}")
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self._matrix = matrix

    def matvec(self, v: Tensor) -> Tensor:
        """Return A v."""
        return self._matrix @ v

    def dense(self) -> Tensor:
        """Return the matrix itself, (n, n), made exactly symmetric; no product is formed."""
        return (self._matrix + self._matrix.T) / 2


def restrict(operator: LinearOperator, indices: Tensor) -> LinearOperator:
    """Return the principal submatrix of rows and columns ``indices`` (a diagonal block: a layer, a neuron).

    Raises:
        ValueError: the indices are not distinct integers within the matrix.
    """
    return _Restricted(operator, indices)


def precondition(operator: LinearOperator, root: LinearOperator | Tensor) -> LinearOperator:
    r"""Return :math:`P^\top A P`.

    Args:
        operator: A.
        root: P: an operator (one that is not symmetric overrides ``transposed``, as batch normalization's
            preconditioner :func:`activation_condition.bnp_root` does), or a vector (n,) that is its diagonal.
    """
    return _Preconditioned(operator, root)


def deflate(operator: LinearOperator, basis: Tensor) -> LinearOperator:
    r"""Return :math:`(I - QQ^\top) A (I - QQ^\top)`: the operator with a subspace taken out.

    Args:
        operator: A.
        basis: (n, k) vectors that span the subspace; they are orthonormalized in float64.

    Raises:
        ValueError: the shape does not fit.
    """
    return _Deflated(operator, basis)


class _Sum(LinearOperator):
    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        if a.shape != b.shape:
            raise ValueError(f"a sum needs operators of one shape; got {a.shape} and {b.shape}")
        super().__init__(a.shape[0], a.dtype, a.device, (a, b))
        self._a, self._b = a, b

    def matvec(self, v: Tensor) -> Tensor:
        return self._a.matvec(v) + self._b @ v


class _Scaled(LinearOperator):
    def __init__(self, a: LinearOperator, factor: float) -> None:
        super().__init__(a.shape[0], a.dtype, a.device, (a,))
        self._a, self._factor = a, factor

    def matvec(self, v: Tensor) -> Tensor:
        return self._factor * self._a.matvec(v)


class _Restricted(LinearOperator):
    def __init__(self, a: LinearOperator, indices: Tensor) -> None:
        n = a.shape[0]
        distinct = indices.ndim == 1 and not indices.is_floating_point() and len(set(indices.tolist())) == len(indices)
        if not distinct or len(indices) == 0 or int(indices.min()) < 0 or int(indices.max()) >= n:
            raise ValueError(f"indices must be distinct integers from 0 to {n - 1}; got {indices!r:.80}")
        super().__init__(len(indices), a.dtype, a.device, (a,))
        self._a, self._indices = a, indices.to(a.device)

    def matvec(self, v: Tensor) -> Tensor:
        whole = torch.zeros(self._a.shape[0], dtype=self.dtype, device=self.device)
        whole[self._indices] = v
        return self._a.matvec(whole)[self._indices]


class _Preconditioned(LinearOperator):
    def __init__(self, a: LinearOperator, root: LinearOperator | Tensor) -> None:
        n = a.shape[0]
        fits = root.shape == (n,) if isinstance(root, Tensor) else root.shape == a.shape
        if not fits:
            raise ValueError(
                f"a preconditioner needs shape ({n},) for a diagonal or ({n}, {n}); got {tuple(root.shape)}"
            )
        super().__init__(n, a.dtype, a.device, (a,))
        self._a = a
        self._root = _Diagonal(root.to(a.device, a.dtype)) if isinstance(root, Tensor) else root

    def matvec(self, v: Tensor) -> Tensor:
        return self._root.transposed(self._a.matvec(self._root.matvec(v)))


class _Diagonal(LinearOperator):
    def __init__(self, entries: Tensor) -> None:
        super().__init__(len(entries), entries.dtype, entries.device)
        self._entries = entries

    def matvec(self, v: Tensor) -> Tensor:
        return self._entries * v


class _Deflated(LinearOperator):
    def __init__(self, a: LinearOperator, basis: Tensor) -> None:
        if basis.ndim != 2 or basis.shape[0] != a.shape[0]:
            raise ValueError(f"a basis needs shape ({a.shape[0]}, k); got {tuple(basis.shape)}")
        super().__init__(a.shape[0], a.dtype, a.device, (a,))
        self._a = a
        self._basis = torch.linalg.qr(basis.to(a.device, torch.float64))[0].to(a.dtype)

    def matvec(self, v: Tensor) -> Tensor:
        return self._project(self._a.matvec(self._project(v)))

    def _project(self, v: Tensor) -> Tensor:
        inside: Tensor = self._basis @ (self._basis.T @ v)
        return v - inside
