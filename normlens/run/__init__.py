"""From a training step to a table: the contract of a probe, the lens, and the file it writes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["capture", "errors", "export", "isolation", "lens", "probe", "reading", "schedule", "store"],
)
