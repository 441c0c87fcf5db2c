"""What is dear is measured at the ends of a run, everything else at every step the lens asks for."""

from __future__ import annotations

import pytest

from normlens import catalog
from normlens.cli.schedule import at_the_ends, scheduled
from normlens.run.probe import wants

DEAR = {"loss_surface": {100}, "representation_alignment": {100}, "singularity": {0, 100}}


@pytest.mark.parametrize("name", catalog.names("normlens.probes"))
def test_a_dear_probe_is_measured_at_the_ends_and_any_other_always(name):
    probe = scheduled(catalog.load("normlens.probes", name)(), last=100)
    assert {step for step in (0, 50, 100) if wants(probe, step)} == DEAR.get(name, {0, 50, 100})
    assert at_the_ends(probe) == (name in DEAR)


def test_the_density_of_the_spectrum_is_taken_after_the_last_step():
    probe = scheduled(catalog.load("normlens.probes", "hessian_spectrum")(), last=100)
    assert probe.density_probes > 0
    assert [step for step in (0, 50, 100) if probe.density_when(step)] == [100]
