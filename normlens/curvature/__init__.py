"""The loss around the parameters, matrix-free: operators, eigenpairs, densities, condition numbers, surfaces.

Imported eagerly: some functions have the name of their module, and a lazy index would hand out the module.
"""

from normlens.curvature.activation_condition import ActivationCondition, BNPRoot, activation_condition, bnp_root
from normlens.curvature.condition import TOLERANCES, ConditionNumber, condition_number
from normlens.curvature.density import SpectralDensity, spectral_density
from normlens.curvature.diagonal import diagonal, frobenius_norm
from normlens.curvature.directions import between, filter_normalized, from_vector
from normlens.curvature.eigenpairs import Eigenpairs
from normlens.curvature.fisher import empirical_fisher, fisher
from normlens.curvature.gauss_newton import gauss_newton
from normlens.curvature.gram import GramSpectrum, gauss_newton_spectrum
from normlens.curvature.hessian import hessian
from normlens.curvature.lanczos import eigsh
from normlens.curvature.lanczos_state import LanczosState
from normlens.curvature.null_space import NullSpace, null_directions
from normlens.curvature.operator import DenseOperator, LinearOperator, deflate, precondition, restrict
from normlens.curvature.surface import Surface, loss_line, loss_plane
from normlens.curvature.trace import trace

__all__ = [
    "TOLERANCES",
    "ActivationCondition",
    "BNPRoot",
    "ConditionNumber",
    "DenseOperator",
    "Eigenpairs",
    "GramSpectrum",
    "LanczosState",
    "LinearOperator",
    "NullSpace",
    "SpectralDensity",
    "Surface",
    "activation_condition",
    "between",
    "bnp_root",
    "condition_number",
    "deflate",
    "diagonal",
    "eigsh",
    "empirical_fisher",
    "filter_normalized",
    "fisher",
    "frobenius_norm",
    "from_vector",
    "gauss_newton",
    "gauss_newton_spectrum",
    "hessian",
    "loss_line",
    "loss_plane",
    "null_directions",
    "precondition",
    "restrict",
    "spectral_density",
    "trace",
]
