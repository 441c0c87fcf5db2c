from __future__ import annotations

import math

import pytest

from normlens.report.rules.rate_too_low import rate_too_low
from support.over_time import measurements


def run(write, *, sharpness, edge, rate, steps=100, losses=(2.3, 2.2)):
    at = (0, steps)
    return write([
        *measurements("edge_of_stability", steps=at, ratio=[sharpness / edge] * 2, threshold=[edge] * 2),
        *measurements("training_curve", steps=at, loss=losses, learning_rate=[rate] * 2),
    ])  # fmt: skip


def quadratic(rate, curvature, steps, momentum=0.0):
    """The loss of a quadratic after some steps of gradient descent, in nats below its first."""
    x, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + curvature * x
        x -= rate * velocity
    return -2 * math.log(abs(x))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_nats_are_those_of_a_quadratic(write_measurements, momentum):
    rate, sharpness, steps = 1e-4, 2.0, 2000
    (finding,) = rate_too_low(
        run(write_measurements, sharpness=sharpness, edge=(2 + 2 * momentum) / rate, rate=rate, steps=steps)
    ) or [None]
    expected = quadratic(rate, sharpness, steps, momentum)
    if expected < 3:
        assert finding.evidence["nats"] == pytest.approx(expected, rel=0.02)
    else:
        assert finding is None


def test_momentum_makes_the_steps_ten_times_as_long(write_measurements):
    plain, heavy = (
        rate_too_low(run(write_measurements, sharpness=1.0, edge=(2 + 2 * beta) / 1e-4, rate=1e-4))[0].evidence["nats"]
        for beta in (0.0, 0.9)
    )
    assert heavy / plain == pytest.approx(10)


def test_adam_s_steps_are_of_the_size_of_the_rate(write_measurements):
    (finding,) = rate_too_low(run(write_measurements, sharpness=1.0, edge=38 / 1e-4, rate=1e-4))
    assert finding.evidence["nats"] == pytest.approx(2 * 100 * 1e-4)


def test_a_run_that_has_settled_or_learned_is_no_finding(write_measurements):
    assert rate_too_low(run(write_measurements, sharpness=10.0, edge=200.0, rate=0.01)) == []  # 20 nats
    assert rate_too_low(run(write_measurements, sharpness=1.0, edge=2e4, rate=1e-4, losses=(2.3, 1.1))) == []


def test_the_advice_s_longer_training_would_settle(write_measurements):
    (finding,) = rate_too_low(run(write_measurements, sharpness=1.0, edge=2e4, rate=1e-4, steps=1000))
    assert finding.evidence["nats"] == pytest.approx(0.2)
    assert "train 450 times as long" in finding.advice  # 450 x 0.2 = 90
