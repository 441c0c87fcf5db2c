"""The questions of the report: one per file, ``question(runs) -> Question``, found by walking this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "are_channels_dying", "are_features_normalized", "can_the_targets_be_reached", "did_it_learn",
        "do_gradients_vanish", "do_inputs_drift", "does_a_gain_reach_the_outputs", "does_calibration_undo_weight_noise",
        "how_exact_is_batch_norm_in_integers", "how_fast_do_weights_turn", "how_ill_conditioned",
        "how_many_directions_curve", "how_unsure_is_it", "is_it_at_the_edge_of_stability", "what_surrounds_the_network",
    ],
)  # fmt: skip
