"""Normalization layers on ``(N, C, *spatial)``, one per file; ``functional`` holds their statistics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["base", "functional", "native", "running"],
    submod_attrs={
        "batch_norm": ["BatchNorm"],
        "group_norm": ["GroupNorm"],
        "instance_norm": ["InstanceNorm"],
        "layer_norm": ["LayerNorm"],
        "rms_norm": ["RMSNorm"],
    },
)
