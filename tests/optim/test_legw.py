from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from normlens.optim import legw, legw_setting


def schedule(lr: float = 0.1, **changed):
    settings = {"base_batch_size": 10, "batch_size": 40, "base_warmup_epochs": 0.5, "dataset_size": 80} | changed
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]}], lr=lr)
    return optimizer, legw(optimizer, **settings)


def rates(optimizer, scheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("k", "peak", "epochs"), [(2, 0.141421356, 0.4), (4, 0.2, 0.8), (16, 0.4, 3.2)])
def test_the_peak_grows_with_the_root_and_the_warm_up_in_epochs_with_the_batch(k: int, peak: float, epochs: float):
    found = legw_setting(0.1, base_batch_size=32, batch_size=32 * k, base_warmup_epochs=0.2)
    assert found == pytest.approx((peak, epochs), rel=1e-8)  # as many digits as are given


@pytest.mark.parametrize(
    ("batch", "peak", "epochs"),
    [(512, 2**2, 10 / 2**6), (1024, 2**2.5, 10 / 2**5), (2048, 8, 0.625), (4096, 2**3.5, 1.25), (8192, 16, 2.5),
     (16384, 2**4.5, 5), (32768, 32, 10)],
)  # fmt: skip
def test_the_ladder_of_imagenet(batch: int, peak: float, epochs: float):
    found = legw_setting(2**2.5, base_batch_size=1024, batch_size=batch, base_warmup_epochs=10 / 2**5)
    assert found == pytest.approx((peak, epochs), rel=1e-14)


@pytest.mark.parametrize("batch_size", [5, 10, 20, 80])
def test_the_warm_up_takes_the_same_number_of_iterations_for_every_batch(batch_size: int):
    """W = 0.5 * 80 / 10 = 4 iterations; the rate of iteration i is sqrt(k) eta_0 i / 4."""
    peak = 0.1 * (batch_size / 10) ** 0.5
    expected = [peak / 4, peak / 2, 3 * peak / 4, peak, peak, peak]
    assert rates(*schedule(batch_size=batch_size), 6) == pytest.approx(expected, rel=1e-14)


def test_a_warm_up_of_less_than_an_iteration_is_none():
    assert rates(*schedule(base_warmup_epochs=0.0), 2) == pytest.approx([0.2, 0.2], rel=1e-14)


def test_the_decay_is_in_epochs_whatever_the_batch():
    """80 samples: an epoch is 2 iterations of 40 and 8 of 10."""
    drop = lambda epoch: 0.1 if epoch >= 1.0 else 1.0  # noqa: E731
    large = rates(*schedule(base_warmup_epochs=0.0, decay=drop), 4)
    small = rates(*schedule(base_warmup_epochs=0.0, decay=drop, batch_size=10), 10)
    assert large == pytest.approx([0.2, 0.2, 0.02, 0.02], rel=1e-14)
    assert small == pytest.approx([0.1] * 8 + [0.01] * 2, rel=1e-14)


def test_every_group_keeps_its_own_base_rate():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.3}, {"params": [second], "lr": 0.5}], lr=1.0)
    legw(optimizer, base_batch_size=1, batch_size=4, base_warmup_epochs=0.0, dataset_size=4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.6, 1.0], rel=1e-14)


def test_a_resumed_schedule_goes_on_to_the_bit():
    uninterrupted = rates(*schedule(), 6)
    optimizer, scheduler = schedule()
    rates(optimizer, scheduler, 2)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    fresh, resumed = schedule()
    states = torch.load(file, weights_only=True)
    fresh.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert rates(fresh, resumed, 4) == uninterrupted[2:]


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(ValueError, match=r"end within the training; got 4 x 0.5 = 2 epochs of warm-up in 1.5 epochs"):
        schedule(epochs=1.5)
    schedule(epochs=2.0)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"base_warmup_epochs": -1.0}, {"dataset_size": 0}])
def test_sizes_must_be_positive(wrong):
    with pytest.raises(ValueError, match="LEGW needs batch sizes and a data set of at least 1 sample"):
        schedule(**wrong)
