"""What samples say about distributions: pure functions on tensors that know no model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "divergence",
        "entropy",
        "fisher_vector",
        "gaussian_mixture",
        "histogram",
        "modality",
        "moments",
        "mutual_information",
    ],
    submod_attrs={"histogram": ["AsinhGrid", "Histogram"], "moments": ["Moments"]},
)
