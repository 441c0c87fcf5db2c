"""Normalization that carries weights of its own: linear maps, convolutions and recurrences, one concept per file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["base"],
    submod_attrs={
        "activation_constants": ["ActivationConstants"],
        "linear_transform_perceptron": ["LinearTransformPerceptron"],
        "normalization_propagation": ["NormPropConv", "NormPropLinear"],
        "recurrent_batch_norm": ["BatchNormLSTM"],
    },
)
