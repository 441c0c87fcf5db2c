"""What can be wrong with a run: one rule per file, ``rule(run) -> list[Finding]``, found by walking this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "above_the_edge", "collapsed", "damaged", "dead_channels", "diverged", "drift", "gradients_at_init",
        "ill_conditioned_inputs", "margin_shrinking", "multi_modal", "near_dead", "non_finite", "norm_runaway",
        "nothing_measured", "probe_failed", "probe_starved", "rate_too_low", "saturated", "stale_statistics",
        "tiny_batches", "undecided", "unfinished", "variance_shift",
    ],
)  # fmt: skip
