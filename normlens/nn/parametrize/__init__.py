"""Normalization of weights instead of activations, on ``torch.nn.utils.parametrize``: one per file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["base"],
    submod_attrs={
        "apply": ["apply_to_weights"],
        "centered_weight_norm": ["centered_weight_norm"],
        "spectral_norm": ["spectral_norm"],
        "unit_norm": ["renormalize_", "unit_norm"],
        "weight_norm": ["weight_norm"],
        "weight_standardization": ["weight_standardization"],
    },
)
