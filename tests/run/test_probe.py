"""Probes get names that do not hide one another, and what is no probe is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from normlens.run.probe import Previous, Probe, Reading, Step, named_probes, probe_name


@dataclass(frozen=True)
class GradientNorm:
    scale: float = 1.0

    def cost(self, step: Step) -> float:
        return 1.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        return [Reading("x", self.scale)]


def of_name(name: str) -> Probe:
    """An instance of a new class of that name."""
    probe: Probe = type(name, (GradientNorm,), {})()
    return probe


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("Elimination", "elimination"),
        ("GradientNorm", "gradient_norm"),
        ("BNGap", "bn_gap"),
        ("HessianSLQ", "hessian_slq"),
        ("Top10Eigenvalues", "top10_eigenvalues"),
        ("MIPairs", "mi_pairs"),
        ("already_snake", "already_snake"),
    ],
)
def test_a_probe_is_called_its_class_in_snake_case(name, snake):
    assert probe_name(of_name(name)) == snake


def test_a_second_probe_of_one_class_is_numbered_and_none_is_lost():
    probes = [GradientNorm(1.0), of_name("Other"), GradientNorm(2.0), GradientNorm(3.0)]
    named = named_probes(probes)
    assert list(named) == ["gradient_norm", "other", "gradient_norm_2", "gradient_norm_3"]
    assert [named[name] for name in named] == probes


def test_two_classes_of_one_name_are_both_kept():
    first, second = of_name("GradientNorm"), of_name("GradientNorm")
    assert list(named_probes([first, second]).values()) == [first, second]


def test_no_probes_is_no_error():
    assert named_probes([]) == {}


@pytest.mark.parametrize("wrong", [GradientNorm, "elimination", lambda step: [], object()])
def test_what_is_no_probe_or_a_class_of_them_is_refused(wrong):
    with pytest.raises(ValueError, match=r"probes must be instances with cost\(step\) and __call__\(step\); got "):
        named_probes([GradientNorm(), wrong])


def test_a_probe_needs_no_base_class():
    assert isinstance(GradientNorm(), Probe)
    assert not isinstance(math.sqrt, Probe)


def test_before_the_first_measurement_there_is_nothing():
    nothing = Previous()
    assert (nothing.first, nothing.last, nothing.at(3)) == ({}, {}, {})
