"""One question to a training run per file; ``normlens list probes`` names them all."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "activation_condition": ["ActivationCondition"],
        "activation_drift": ["ActivationDrift"],
        "batch_noise": ["BatchNoise"],
        "calibration": ["Calibration"],
        "cancellation": ["Cancellation"],
        "condition_number": ["ConditionNumber"],
        "covariate_shift": ["CovariateShift"],
        "edge_of_stability": ["EdgeOfStability"],
        "elimination": ["Elimination"],
        "fisher_vector": ["FisherVector"],
        "gradient_flow": ["GradientFlow"],
        "gradient_predictiveness": ["GradientPredictiveness"],
        "hessian_spectrum": ["HessianSpectrum"],
        "loss_surface": ["LossSurface"],
        "mutual_information": ["MutualInformation"],
        "predictive_entropy": ["PredictiveEntropy"],
        "quantization_error": ["QuantizationError"],
        "rank_collapse": ["RankCollapse"],
        "representation_alignment": ["RepresentationAlignment"],
        "saturation": ["Saturation"],
        "self_normalization": ["SelfNormalization"],
        "singularity": ["Singularity"],
        "training_curve": ["TrainingCurve"],
        "variance_shift": ["VarianceShift"],
        "weight_dynamics": ["WeightDynamics"],
    },
)
