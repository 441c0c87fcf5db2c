"""The questions of the report: one per file, ``question(runs) -> Question``, found by walking this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "are_channels_dying", "are_features_normalized", "did_it_learn", "do_gradients_vanish", "do_inputs_drift",
    ],
)  # fmt: skip
