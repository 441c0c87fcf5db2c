"""One figure per file: run(s) -> Axes; and ``f_data``: the same as a table. No figure knows a model.

Imported eagerly: figure and module share their name, so a lazy index would hand out the module instead of the function.
"""

from normlens.plot.activation_condition import activation_condition as activation_condition
from normlens.plot.activation_condition import activation_condition_data as activation_condition_data
from normlens.plot.activation_drift import activation_drift as activation_drift
from normlens.plot.activation_drift import activation_drift_data as activation_drift_data
from normlens.plot.activation_ridge import activation_ridge as activation_ridge
from normlens.plot.activation_ridge import activation_ridge_data as activation_ridge_data
from normlens.plot.batch_noise import batch_noise as batch_noise
from normlens.plot.batch_noise import batch_noise_data as batch_noise_data
from normlens.plot.calibration import calibration as calibration
from normlens.plot.calibration import calibration_data as calibration_data
from normlens.plot.cancellation import cancellation as cancellation
from normlens.plot.cancellation import cancellation_data as cancellation_data
from normlens.plot.condition_number import condition_number as condition_number
from normlens.plot.condition_number import condition_number_data as condition_number_data
from normlens.plot.covariate_shift import covariate_shift as covariate_shift
from normlens.plot.covariate_shift import covariate_shift_data as covariate_shift_data
from normlens.plot.dead_channels import dead_channels as dead_channels
from normlens.plot.dead_channels import dead_channels_data as dead_channels_data
from normlens.plot.edge_of_stability import edge_of_stability as edge_of_stability
from normlens.plot.edge_of_stability import edge_of_stability_data as edge_of_stability_data
from normlens.plot.elimination import elimination as elimination
from normlens.plot.elimination import elimination_data as elimination_data
from normlens.plot.elimination_map import elimination_map as elimination_map
from normlens.plot.elimination_map import elimination_map_data as elimination_map_data
from normlens.plot.fisher_vector import fisher_vector as fisher_vector
from normlens.plot.fisher_vector import fisher_vector_data as fisher_vector_data
from normlens.plot.gradient_flow import gradient_flow as gradient_flow
from normlens.plot.gradient_flow import gradient_flow_data as gradient_flow_data
from normlens.plot.gradient_norm import gradient_norm as gradient_norm
from normlens.plot.gradient_norm import gradient_norm_data as gradient_norm_data
from normlens.plot.gradient_predictiveness import gradient_predictiveness as gradient_predictiveness
from normlens.plot.gradient_predictiveness import gradient_predictiveness_data as gradient_predictiveness_data
from normlens.plot.hessian_spectrum import hessian_spectrum as hessian_spectrum
from normlens.plot.hessian_spectrum import hessian_spectrum_data as hessian_spectrum_data
from normlens.plot.information_ratio import information_ratio as information_ratio
from normlens.plot.information_ratio import information_ratio_data as information_ratio_data
from normlens.plot.loss_surface import loss_surface as loss_surface
from normlens.plot.loss_surface import loss_surface_data as loss_surface_data
from normlens.plot.loss_surface_3d import loss_surface_3d as loss_surface_3d
from normlens.plot.loss_surface_3d import loss_surface_3d_data as loss_surface_3d_data
from normlens.plot.mutual_information import mutual_information as mutual_information
from normlens.plot.mutual_information import mutual_information_data as mutual_information_data
from normlens.plot.mutual_information_matrix import mutual_information_matrix as mutual_information_matrix
from normlens.plot.mutual_information_matrix import (
    mutual_information_matrix_data as mutual_information_matrix_data,
)
from normlens.plot.overview import overview as overview
from normlens.plot.overview import overview_data as overview_data
from normlens.plot.overview import overview_size as overview_size
from normlens.plot.predictive_entropy import predictive_entropy as predictive_entropy
from normlens.plot.predictive_entropy import predictive_entropy_data as predictive_entropy_data
from normlens.plot.quantization_error import quantization_error as quantization_error
from normlens.plot.quantization_error import quantization_error_data as quantization_error_data
from normlens.plot.rank_collapse import rank_collapse as rank_collapse
from normlens.plot.rank_collapse import rank_collapse_data as rank_collapse_data
from normlens.plot.representation_alignment import representation_alignment as representation_alignment
from normlens.plot.representation_alignment import representation_alignment_data as representation_alignment_data
from normlens.plot.saturation import saturation as saturation
from normlens.plot.saturation import saturation_data as saturation_data
from normlens.plot.self_normalization import self_normalization as self_normalization
from normlens.plot.self_normalization import self_normalization_data as self_normalization_data
from normlens.plot.singularity import singularity as singularity
from normlens.plot.singularity import singularity_data as singularity_data
from normlens.plot.spectral_density import spectral_density as spectral_density
from normlens.plot.spectral_density import spectral_density_data as spectral_density_data
from normlens.plot.statdiff import statdiff as statdiff
from normlens.plot.statdiff import statdiff_data as statdiff_data
from normlens.plot.training_curve import training_curve as training_curve
from normlens.plot.training_curve import training_curve_data as training_curve_data
from normlens.plot.variance_shift import variance_shift as variance_shift
from normlens.plot.variance_shift import variance_shift_data as variance_shift_data
from normlens.plot.weight_dynamics import weight_dynamics as weight_dynamics
from normlens.plot.weight_dynamics import weight_dynamics_data as weight_dynamics_data
