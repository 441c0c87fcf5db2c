"""What samples say about distributions: pure functions on tensors that know no model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["moments"], submod_attrs={"moments": ["Moments"]}
)
