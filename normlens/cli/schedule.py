"""When the probes of ``normlens run`` are measured: the dear ones at the ends of the training alone."""

from __future__ import annotations

from dataclasses import replace

from normlens.probes.hessian_spectrum import HessianSpectrum
from normlens.probes.loss_surface import LossSurface
from normlens.probes.representation_alignment import RepresentationAlignment
from normlens.probes.singularity import Singularity
from normlens.run.probe import Probe
from normlens.run.schedule import at

__all__ = ["at_the_ends", "scheduled"]

_DENSITY_PROBES = 3


def at_the_ends(probe: Probe) -> bool:
    """Whether :func:`scheduled` leaves the measurements between the first and the last step out."""
    return isinstance(probe, LossSurface | RepresentationAlignment | Singularity)


def scheduled(probe: Probe, last: int) -> Probe:
    """Return the probe with a schedule of its own where one is needed.

    Args:
        probe: one with its defaults.
        last: the last step of the training.
    """
    if isinstance(probe, LossSurface | RepresentationAlignment):
        return replace(probe, when=at(last))
    if isinstance(probe, Singularity):
        return replace(probe, when=at(0, last))
    if isinstance(probe, HessianSpectrum):
        return replace(probe, density_probes=_DENSITY_PROBES, density_when=at(last))
    return probe
