"""Normalization that carries weights of its own: linear maps, convolutions and recurrences, one concept per file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["base"],
    submod_attrs={
        "activation_constants": ["ActivationConstants"],
        "blank_out": ["BlankOut", "sampling"],
        "hamilton": ["hamilton_matrix", "hamilton_product"],
        "key_value_memory": ["KeyValueMemory", "attention", "bipolar", "soft_abs"],
        "linear_transform_perceptron": ["LinearTransformPerceptron"],
        "normalization_propagation": ["NormPropConv", "NormPropLinear"],
        "predictive_entropy": ["PredictiveEntropy", "entropy_of_samples"],
        "quaternion": ["QuaternionConv", "QuaternionConvTranspose", "QuaternionLinear"],
        "quaternion_batch_norm": ["QuaternionBatchNorm"],
        "recurrent_batch_norm": ["BatchNormLSTM"],
        "stochastic_synapse": ["NSMConv", "NSMLinear"],
    },
)
