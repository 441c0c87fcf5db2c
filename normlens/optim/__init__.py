"""Optimizer transforms and schedules: what normalization does to a gradient step, without a layer in the network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bnp": ["BNP"],
        "equi_normalization": ["EquiNormalization", "equi_normalize"],
        "explore_exploit": ["ExploreExploit"],
        "legw": ["legw", "legw_setting"],
        "mean_normalization": ["MeanNormalization"],
        "natural_gradient": ["NaturalGradient"],
        "prong": ["PRONG"],
        "rescaling_graph": ["Stream", "find_streams"],
        "transform": ["Transform"],
        "weight_rescaling": ["WeightRescaling"],
    },
)
