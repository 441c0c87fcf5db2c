from __future__ import annotations

import pytest
import torch

from normlens.run.update import UpdateTracker
from support.networks import mlp


def test_the_update_is_new_minus_old_and_is_handed_out_once():
    model = mlp()
    tracker = UpdateTracker(torch.compile(model, backend="eager"))
    tracker.remember(3)
    with torch.no_grad():
        model[0].weight.add_(0.25)
    update = tracker.take(4)
    assert update["0.weight"].unique().tolist() == [0.25] or torch.allclose(
        update["0.weight"], torch.full_like(model[0].weight, 0.25), atol=torch.finfo(torch.float32).eps
    )
    assert not update["2.bias"].any()
    assert tracker.take(4) is None


def test_nothing_remembered_gives_no_update():
    assert UpdateTracker(mlp()).take(1) is None


@pytest.mark.parametrize("step", [3, 5])
def test_what_is_not_the_change_of_one_step_is_no_update(step):
    """A run that ends between two due steps is measured at its end, where the next update was being waited for."""
    tracker = UpdateTracker(mlp())
    tracker.remember(3)
    assert tracker.take(step) is None
