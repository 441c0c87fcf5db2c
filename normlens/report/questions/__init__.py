"""The questions of the report: one per file, ``question(runs) -> Question``, found by walking this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "are_channels_dying", "are_features_normalized", "are_gradients_canceling", "are_layer_inputs_ill_conditioned",
        "are_units_saturated", "can_the_targets_be_reached", "did_it_learn", "do_batch_norm_and_dropout_disagree",
        "do_gradients_vanish", "do_inputs_drift", "do_layers_chase_each_other", "do_representations_collapse",
        "does_a_gain_reach_the_outputs", "does_calibration_undo_weight_noise",
        "does_the_ic_layer_make_neurons_independent",
        "how_exact_is_batch_norm_in_integers", "how_fast_do_weights_turn", "how_ill_conditioned",
        "how_many_directions_curve", "how_noisy_are_batch_statistics", "how_predictive_is_the_gradient",
        "how_singular_is_the_fisher_matrix", "how_unsure_is_it", "is_it_at_the_edge_of_stability",
        "what_does_batch_norm_s_fisher_vector_see", "what_surrounds_the_network",
    ],
)  # fmt: skip
