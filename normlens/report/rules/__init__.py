"""What can be wrong with a run: one rule per file, ``rule(run) -> list[Finding]``, found by walking this package."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "damaged", "dead_channels", "diverged", "near_dead", "non_finite", "nothing_measured", "probe_failed",
        "probe_starved", "unfinished",
    ],
)  # fmt: skip
