"""The loss around the parameters, matrix-free: operators, eigenpairs, densities, condition numbers, surfaces.

Imported eagerly: some functions have the name of their module, and a lazy index would hand out the module.
"""

from normlens.curvature.activation_condition import ActivationCondition, BNPRoot, activation_condition, bnp_root
from normlens.curvature.bnp_condition import BNPCondition, bnp_condition, bnp_layer_root
from normlens.curvature.condition import DENSE_ROWS, SHARES, TOLERANCES, ConditionNumber, condition_number
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
from normlens.curvature.layer_condition import layer_condition
from normlens.curvature.magnitude_quantiles import magnitude_quantiles
from normlens.curvature.neuron_condition import CoupledSamplesError, neuron_condition
from normlens.curvature.null_space import NullSpace, null_directions
from normlens.curvature.operator import DenseOperator, LinearOperator, deflate, precondition, restrict
from normlens.curvature.resumable import Resumable, resumable
from normlens.curvature.surface import Surface, loss_line, loss_plane
from normlens.curvature.trace import trace

__all__ = [
    "DENSE_ROWS",
    "SHARES",
    "TOLERANCES",
    "ActivationCondition",
    "BNPCondition",
    "BNPRoot",
    "ConditionNumber",
    "CoupledSamplesError",
    "DenseOperator",
    "Eigenpairs",
    "GramSpectrum",
    "LanczosState",
    "LinearOperator",
    "NullSpace",
    "Resumable",
    "SpectralDensity",
    "Surface",
    "activation_condition",
    "between",
    "bnp_condition",
    "bnp_layer_root",
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
    "layer_condition",
    "loss_line",
    "loss_plane",
    "magnitude_quantiles",
    "neuron_condition",
    "null_directions",
    "precondition",
    "restrict",
    "resumable",
    "spectral_density",
    "trace",
]
