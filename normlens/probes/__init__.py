"""One question to a training run per file; ``normlens list probes`` names them all."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "activation_drift": ["ActivationDrift"],
        "calibration": ["Calibration"],
        "condition_number": ["ConditionNumber"],
        "edge_of_stability": ["EdgeOfStability"],
        "elimination": ["Elimination"],
        "hessian_spectrum": ["HessianSpectrum"],
        "loss_surface": ["LossSurface"],
        "predictive_entropy": ["PredictiveEntropy"],
        "quantization_error": ["QuantizationError"],
        "representation_alignment": ["RepresentationAlignment"],
        "self_normalization": ["SelfNormalization"],
        "training_curve": ["TrainingCurve"],
        "weight_dynamics": ["WeightDynamics"],
    },
)
