from __future__ import annotations

import torch

from normlens.run.update import UpdateTracker
from support.networks import mlp


def test_the_update_is_new_minus_old_and_is_handed_out_once():
    model = mlp()
    tracker = UpdateTracker(torch.compile(model, backend="eager"))
    tracker.remember()
    with torch.no_grad():
        model[0].weight.add_(0.25)
    update = tracker.take()
    assert update["0.weight"].unique().tolist() == [0.25] or torch.allclose(
        update["0.weight"], torch.full_like(model[0].weight, 0.25), atol=torch.finfo(torch.float32).eps
    )
    assert not update["2.bias"].any()
    assert tracker.take() is None


def test_nothing_remembered_gives_no_update():
    assert UpdateTracker(mlp()).take() is None
