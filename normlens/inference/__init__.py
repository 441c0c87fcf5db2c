"""What is done to a trained model: calibration, noise, quantization and folding of its normalization."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": ["calibrate_batchnorm"],
        "fixed_point": ["FixedPointAffine", "quantize_affine"],
        "folding": ["fold_batchnorm", "fold_batchnorms"],
        "prediction_time": ["prediction_time_batchnorm"],
        "quantization": ["QuantizedBatchNorm"],
        "weight_noise": ["WeightNoise"],
    },
)
