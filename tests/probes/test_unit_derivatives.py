"""Sample by sample, the derivatives are those of autograd by the weights themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlens.probes.unit_derivatives import has_patches, layer_derivatives, patches
from normlens.risk import EmpiricalRisk


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (5, 4)),
        (nn.Linear(4, 3), (5, 6, 4)),
        (nn.Conv1d(2, 3, 3, padding=1, stride=2), (5, 2, 9)),
        (nn.Conv2d(2, 3, (3, 2), padding=(1, 0), stride=(1, 2), dilation=(2, 1)), (5, 2, 7, 8)),
        (nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (5, 2, 6, 6)),
    ],
)
def test_the_weight_times_the_patches_is_the_layer(layer, shape):
    x = normal(*shape)
    seen = patches(layer.double(), x)
    made = seen @ layer.weight.flatten(1).T + layer.bias
    out = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
    assert_close(made, out.reshape(made.shape), rtol=1e-12, atol=1e-12)


def test_of_other_layers_no_patches_are_known():
    known = [has_patches(m) for m in (nn.Linear(2, 2), nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1))]
    assert known == [True, True, True, False]


def risk_of(model: nn.Module, loss=nn.functional.cross_entropy, outputs: int = 3) -> EmpiricalRisk:
    y = torch.randint(0, outputs, (7,), generator=torch.Generator().manual_seed(1))
    return EmpiricalRisk(model.double(), loss, (normal(7, 2, 6, 6), y if outputs > 1 else normal(7, 1)), mode="eval")


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 5, 3, padding=1)]
        return nn.Sequential(*body, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(80, 3))


def test_slopes_and_patches_make_every_sample_s_gradient_of_every_direction():
    model = network()
    risk = risk_of(model)
    before = len(model[0]._forward_hooks)
    found = layer_derivatives(risk, ["0", "3"])
    assert len(model[0]._forward_hooks) == before
    x, _ = next(iter(risk.batches()))
    outputs = risk.batch_outputs({}, (x, None))
    probability = outputs.softmax(1)
    hessian = torch.diag_embed(probability) - probability[:, :, None] * probability[:, None]
    for name in ("0", "3"):
        weight = model.get_submodule(name).weight
        seen = patches(model.get_submodule(name), found[name].inputs)
        grams = []
        for sample in range(len(x)):
            rows = [
                torch.autograd.grad(model.eval()(x[[sample]])[0, c], weight)[0].flatten() for c in range(3)
            ]  # fmt: skip
            jacobian = torch.stack(rows)
            values, vectors = torch.linalg.eigh(hessian[sample])
            grams.append(jacobian.T @ vectors[:, 1:] @ vectors[:, 1:].T @ jacobian)  # the softmax ignores one direction
            made = [torch.einsum("pu,pd->ud", s[sample], seen[sample]).flatten() for s in found[name].slopes]
            assert_close(sum(torch.outer(row, row) for row in made), grams[-1], rtol=1e-9, atol=1e-10)
            assert values[0].abs() < 1e-12


def test_a_direction_that_the_loss_does_not_curve_along_is_left_at_zero():
    slopes = layer_derivatives(risk_of(network()), ["3"])["3"].slopes
    sizes = [float(slope.abs().max()) for slope in slopes]
    assert sizes[2] == 0 < min(sizes[:2])


def test_samples_that_meet_are_noticed():
    model = network()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).double()
    with pytest.raises(ValueError, match=r"depend on their own sample alone; .* by \S+ of the largest derivative"):
        layer_derivatives(risk_of(model), ["0"])
