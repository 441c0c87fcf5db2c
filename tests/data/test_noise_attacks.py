from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.data import Batches, ConstantNoise, MixDatasets
from normlens.nn import BatchNorm, GroupNorm, InstanceEnhancementBatchNorm, RMSNorm

EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(layer: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(layer.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed + 50))
    return layer.double()


LAYERS = {
    "torch batch": (nn.BatchNorm2d(4, dtype=torch.float64), (6, 4, 3, 3)),
    "batch": (BatchNorm(4, dtype=torch.float64), (6, 4, 3, 3)),
    "bare": (nn.BatchNorm1d(4, affine=False, dtype=torch.float64), (6, 4)),
    "group": (GroupNorm(4, groups=2, dtype=torch.float64), (6, 4, 3, 3)),
    "rms, without bias": (RMSNorm(4, dtype=torch.float64), (6, 4, 3)),
    "torch layer": (nn.LayerNorm(4, dtype=torch.float64), (6, 3, 4)),
    "torch layer over space": (nn.LayerNorm((4, 3), dtype=torch.float64), (6, 4, 3)),
    "torch rms": (nn.RMSNorm(4, dtype=torch.float64), (6, 3, 4)),
    "torch group": (nn.GroupNorm(2, 4, dtype=torch.float64), (6, 4, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_constant_noise_is_absorbed_by_scale_and_shift(name):
    """B, attack 1: the attacked layer is the layer with (scale weight, bias + shift weight)."""
    layer, shape = LAYERS[name]
    layer, x, scale, shift = randomized(layer).train(), normal(*shape), 0.8, 0.5
    plain = layer(x).detach()
    with ConstantNoise(layer, scale, shift):
        attacked = layer(x).detach()
    weight = getattr(layer, "weight", None)
    if weight is None:
        torch.testing.assert_close(attacked, scale * plain + shift, rtol=0, atol=20 * EPS)
        return
    with torch.no_grad():
        if getattr(layer, "bias", None) is None:
            along = weight if "torch" in name else weight.reshape(1, -1, 1)
            expected = scale * plain + shift * along
        else:
            layer.bias += shift * weight
            weight *= scale
            expected = layer(x)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=100 * EPS)


def test_the_gate_of_instance_enhancement_multiplies_the_noise_too():
    """Y = gamma delta (N_a x_hat + N_b) + beta, with the gate written out."""
    layer, x = randomized(InstanceEnhancementBatchNorm(4, dtype=torch.float64)), normal(6, 4, 3, 3)
    with ConstantNoise(layer, 0.5, 0.2):
        found = layer(x)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    unit = 0.5 * (x - mean) / (var + layer.eps).sqrt() + 0.2
    flat = {name: p.reshape(1, 4, 1, 1) for name, p in layer.named_parameters()}
    gate = torch.sigmoid(flat["weight_readjust"] * x.mean((2, 3), keepdim=True) + flat["bias_readjust"])
    torch.testing.assert_close(found, flat["weight"] * gate * unit + flat["bias"], rtol=0, atol=100 * EPS)


def test_the_attack_is_on_in_train_mode_only_and_gone_after_the_block_whatever_happens():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()).double(), normal(8, 3)
    clean = model(x)
    with pytest.raises(KeyError), ConstantNoise(model, 0.5, 0.5):
        assert not torch.equal(model(x), clean)
        model.eval()
        in_eval = model(x)
        raise KeyError
    assert torch.equal(model(x), in_eval)
    assert torch.equal(model.train()(x), clean)
    assert not model[1]._forward_hooks


def test_running_statistics_are_those_without_the_attack():
    layers = [nn.BatchNorm1d(3).double() for _ in range(2)]
    x = normal(8, 3)
    layers[0](x)
    with ConstantNoise(layers[1], 0.5, 0.2):
        layers[1](x)
    assert torch.equal(layers[0].running_mean, layers[1].running_mean)
    assert torch.equal(layers[0].running_var, layers[1].running_var)


def test_a_model_without_normalization_is_refused():
    with pytest.raises(ValueError, match="needs a model with normalization layers; Linear has none; build it"):
        ConstantNoise(nn.Linear(2, 2), 0.5, 0.5)


def mixed(k: int, seed: int = 0) -> MixDatasets:
    loader = Batches(normal(10, 2, 3, 3), torch.arange(10), batch_size=4, seed=0)
    other = 2 * normal(5, 2, 3, 3, seed=1) + 3
    return MixDatasets(loader, other, k, generator=torch.Generator().manual_seed(seed))


def test_contaminated_statistics_are_those_of_the_mixture():
    """B, attack 2: mean and biased variance in closed form, as batch norm sees them."""
    for x, y, mask in mixed(3):
        n, k = len(y), 3
        own, foreign = x[mask], x[~mask]
        m1, m2 = own.mean((0, 2, 3)), foreign.mean((0, 2, 3))
        v1, v2 = own.var((0, 2, 3), correction=0), foreign.var((0, 2, 3), correction=0)
        mean = (n * m1 + k * m2) / (n + k)
        var = n / (n + k) * (v1 + (m1 - mean) ** 2) + k / (n + k) * (v2 + (m2 - mean) ** 2)
        layer = BatchNorm(2, momentum=1.0, eps=0.0).double()
        out = layer(x)
        torch.testing.assert_close(layer.running_mean, mean, rtol=0, atol=50 * EPS)
        unbiased = (n + k) * 9 / ((n + k) * 9 - 1)
        torch.testing.assert_close(layer.running_var, var * unbiased, rtol=50 * EPS, atol=0)
        expected = (own - mean[:, None, None]) / var.sqrt()[:, None, None]
        torch.testing.assert_close(out[mask], expected, rtol=0, atol=100 * EPS)


def test_the_batches_are_the_loader_s_with_contaminants_behind():
    clean = Batches(normal(10, 2, 3, 3), torch.arange(10), batch_size=4, seed=0)
    attacked = mixed(3)
    assert len(attacked) == len(clean) == 3
    for (x, y), (x_mixed, y_mixed, mask) in zip(clean, attacked, strict=True):
        assert torch.equal(x_mixed[mask], x)
        assert torch.equal(y_mixed, y)
        assert mask.tolist() == [True] * len(x) + [False] * 3
        assert all(any(torch.equal(one, known) for known in attacked.other) for one in x_mixed[~mask])


def test_the_generator_alone_decides_which_contaminants_come(global_random_states):
    before = global_random_states()
    first, again, other = ([x for x, _, _ in mixed(3, seed)] for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert global_random_states() == before


def test_no_contaminants_leave_the_batches_as_they_were():
    for x, y, mask in mixed(0):
        assert len(x) == len(y)
        assert mask.all()


def test_what_cannot_be_mixed_is_refused():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="needs k of at least 0 and at least one other image; got k=-1"):
        MixDatasets([], torch.zeros(2, 1), -1, generator=generator)
    with pytest.raises(ValueError, match="got k=1 and 0 images; use k=0"):
        MixDatasets([], torch.zeros(0, 1), 1, generator=generator)
    loader = [(torch.zeros(2, 1, 8, 8), torch.zeros(2))]
    with pytest.raises(ValueError, match=r"images of one shape; got \(1, 8, 8\) and \(3, 32, 32\); crop"):
        list(MixDatasets(loader, torch.zeros(4, 3, 32, 32), 1, generator=generator))
    with pytest.raises(TypeError, match="has a length only when its loader has one"):
        len(MixDatasets(iter(loader), torch.zeros(4, 3, 32, 32), 1, generator=generator))
