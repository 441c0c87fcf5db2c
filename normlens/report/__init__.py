"""Findings in words, and one self-contained page; both read a recorded run and never see a model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["cost", "diagnose", "finding", "html", "notebook", "questions", "rules", "summary", "verdict"],
)
