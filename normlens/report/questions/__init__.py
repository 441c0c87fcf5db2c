"""The questions of the report: one per file, ``question(runs) -> Question``, found by walking this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "are_channels_dying", "are_features_normalized", "did_it_learn", "do_gradients_vanish", "do_inputs_drift",
        "how_ill_conditioned", "how_many_directions_curve", "is_it_at_the_edge_of_stability",
        "what_surrounds_the_network",
    ],
)  # fmt: skip
