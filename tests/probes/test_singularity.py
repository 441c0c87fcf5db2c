"""The Fisher matrix of a hidden layer has the null directions that theory counts for each kind of singular unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.curvature.gram import gauss_newton_spectrum
from normlens.curvature.hessian import hessian
from normlens.nn.group_norm import GroupNorm
from normlens.probes import singularity
from normlens.probes.singularity import Singularity
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

TOLERANCE = 1e-10


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """A network in float64 with generic weights."""
    for seed, parameter in enumerate(model.double().parameters()):
        parameter.data = scale * normal(*parameter.shape, seed=seed + 10)
    return model


def two_units(act: nn.Module, d: int = 3, outputs: int = 1, *, bias: bool = False) -> nn.Sequential:
    return drawn(nn.Sequential(nn.Linear(d, 2, bias=bias), act, nn.Linear(2, outputs, bias=False)))


def squared(model: nn.Module, samples: int = 64, *, critical: bool = False) -> EmpiricalRisk:
    """The squared error against noise, or, at a critical point, against the network's own outputs."""
    x = normal(samples, model[0].weight.shape[1], seed=1)
    outputs = model(x).detach()
    return EmpiricalRisk(model, nn.functional.mse_loss, (x, outputs if critical else normal(*outputs.shape, seed=2)))


def classes(model: nn.Module, x: Tensor, outputs: int) -> EmpiricalRisk:
    y = torch.randint(0, outputs, (len(x),), generator=torch.Generator().manual_seed(3))
    return EmpiricalRisk(model, nn.functional.cross_entropy, (x, y))


def ask(risk: EmpiricalRisk, **settings) -> dict[tuple[str, str], float]:
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(r.layer, r.name): float(r.value) for r in Singularity(**settings)(step)}


def of_layer(risk: EmpiricalRisk, layer: str = "1", **settings) -> dict[str, float]:
    return {name: value for (where, name), value in ask(risk, **settings).items() if where == layer}


def small_and_negative(risk: EmpiricalRisk) -> tuple[int, int]:
    """Null and negative eigenvalues of the Hessian by all parameters, dense."""
    values = torch.linalg.eigvalsh(hessian(risk).dense())
    edge = TOLERANCE * values.abs().max()
    return int((values.abs() <= edge).sum()), int((values < -edge).sum())


def outgoing(model: nn.Sequential) -> None:
    model[2].weight.data[:, 0] = 0


def incoming(model: nn.Sequential) -> None:
    model[0].weight.data[0] = 0


def overlap(model: nn.Sequential) -> None:
    model[0].weight.data[0] = model[0].weight.data[1]


def mirror(model: nn.Sequential) -> None:
    model[0].weight.data[0] = -model[0].weight.data[1]


KINDS = {outgoing: "outgoing", incoming: "incoming", overlap: "overlapping", mirror: "overlapping"}


@pytest.mark.parametrize("d", [3, 5])
@pytest.mark.parametrize("make", KINDS)
def test_two_tanh_units_have_d_1_and_d_plus_1_null_directions(make, d):
    """T5: 3, 1 and 4 for d = 3."""
    model = two_units(nn.Tanh(), d)
    risk = squared(model)
    plain = of_layer(risk)
    assert (plain["nullity"], plain["predicted"], plain["regular"]) == (0, 0, 0)
    make(model)
    expected = {outgoing: d, incoming: 1, overlap: d + 1, mirror: d + 1}[make]
    found = of_layer(risk)
    assert (found["nullity"], found["predicted"], found["forced"]) == (expected, expected, 0)
    assert found[KINDS[make]] == (2 if KINDS[make] == "overlapping" else 1)
    spectrum = gauss_newton_spectrum(risk)  # an implementation of its own, by all parameters
    assert spectrum.parameters - int((spectrum.values > TOLERANCE * spectrum.values[0]).sum()) == expected


@pytest.mark.parametrize(("make", "expected"), [(outgoing, (2, 2)), (overlap, (0, None)), (incoming, (0, None))])
def test_off_critical_points_the_hessian_is_less_singular_than_the_fisher_matrix(make, expected):
    """The w block is zero at an outgoing elimination, but w and a are coupled: d - 1 null, and one saddle more."""
    model = two_units(nn.Tanh())
    make(model)
    null, negative = small_and_negative(squared(model))
    assert null == expected[0]
    assert expected[1] in (None, negative)


def test_off_critical_points_an_outgoing_elimination_leaves_the_hessian_d_less_o_null_directions():
    for outputs in (1, 2, 3):
        model = two_units(nn.Tanh(), outputs=outputs)
        outgoing(model)
        assert small_and_negative(squared(model))[0] == 3 - outputs


@pytest.mark.parametrize(("make", "expected"), [(outgoing, 3), (overlap, 4), (incoming, 1)])
def test_at_critical_points_of_zero_residual_the_hessian_is_as_singular(make, expected):
    model = two_units(nn.Tanh())
    make(model)
    assert small_and_negative(squared(model, critical=True)) == (expected, 0)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_dead_relu_takes_all_its_weights_from_fisher_matrix_and_hessian(outputs):
    """d_in + 1 + d_out; the other unit's scale, which the Fisher matrix does not see either, is regular."""
    model = two_units(nn.ReLU(), outputs=outputs, bias=True)
    model[0].bias.data[0] = -50
    risk = squared(model)
    found = of_layer(risk)
    assert (found["dead"], found["regular"]) == (1, 2)
    assert found["nullity"] == found["predicted"] == 3 + 1 + outputs + 1
    assert small_and_negative(risk)[0] == 3 + 1 + outputs


@pytest.mark.parametrize(("parallel", "expected"), [(True, 3 + 2), (False, 2)])
def test_with_more_outputs_an_overlap_frees_o_directions_and_d_more_where_outgoing_weights_are_parallel(
    parallel, expected
):
    model = two_units(nn.Tanh(), outputs=2)
    overlap(model)
    if parallel:
        model[2].weight.data[:, 0] = -3 * model[2].weight.data[:, 1]
    found = of_layer(squared(model))
    assert found["nullity"] == found["predicted"] == expected


def test_with_more_outputs_an_incoming_elimination_frees_all_outgoing_weights():
    model = two_units(nn.Tanh(), outputs=3)
    incoming(model)
    found = of_layer(squared(model))
    assert found["nullity"] == found["predicted"] == 3


@pytest.mark.parametrize("act", [nn.Tanh(), nn.LeakyReLU(0.3)])
def test_silent_units_share_what_they_see_as_overlapping_ones_do(act):
    """Of two units without incoming weights 2 (d + 1) parameters have rank d alone; a live one may lose its scale."""
    model = drawn(nn.Sequential(nn.Linear(3, 3, bias=False), act, nn.Linear(3, 1, bias=False)))
    model[0].weight.data[:2] = 0
    found = of_layer(squared(model))
    scale = isinstance(act, nn.LeakyReLU)
    assert (found["incoming"], found["overlapping"]) == (2, 0)
    assert found["nullity"] == found["predicted"] == 2 * 4 - 3 + scale


def test_relu_units_that_are_multiples_overlap_and_share_one_scale():
    """d for the directions, 1 for the outgoing weights, 1 for the scale of either."""
    model = two_units(nn.ReLU())
    model[0].weight.data[0] = 2.5 * model[0].weight.data[1]
    found = of_layer(squared(model, 200))
    assert (found["overlapping"], found["nullity"], found["predicted"]) == (2, 5, 5)
    model[0].weight.data[0] *= -1  # on where the other is off: two units
    found = of_layer(squared(model, 200))
    assert (found["overlapping"], found["nullity"], found["predicted"]) == (0, 2, 2)


def test_every_kind_at_once_in_a_classifier_is_counted_one_by_one():
    """Units 0 to 6: cut off, silent, overlapping pair, dead input to all, and two that are sound."""
    d, o, units = 6, 4, 6
    model = drawn(nn.Sequential(nn.Linear(d, units, bias=False), nn.Tanh(), nn.Linear(units, o, bias=False)), 0.5)
    model[2].weight.data[:, 0] = 0
    model[0].weight.data[1] = 0
    model[0].weight.data[2] = model[0].weight.data[3]
    x = normal(100, d, seed=4)
    x[:, -1] = 0
    found = of_layer(classes(model, x, o))
    regular = units * (1 + 1)  # the input that is always zero, and the shift common to all classes
    assert found["regular"] == regular
    # d' = 5 and o' = 3 are left; the outgoing weights of the pair are not parallel.
    assert found["nullity"] == found["predicted"] == regular + 5 + 3 + 3
    assert [found[kind] for kind in ("dead", "outgoing", "incoming", "overlapping")] == [0, 1, 1, 2]


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_deep_network_s_blocks_are_those_of_the_dense_fisher_matrix(act, norm, seed):
    """The prediction is exact for smooth units; rectified ones that are on for all data depend on each other, too."""
    between = [norm(5)] if norm else []
    model = nn.Sequential(nn.Linear(4, 5), *between, act(), nn.Linear(5, 6), act(), nn.Linear(6, 3)).double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = normal(*parameter.shape, seed=20 * seed + index)
    risk = squared(model, 100)  # S is a multiple of the identity: the very spectrum
    found = ask(risk)
    acts = [name for name, module in model.named_modules() if isinstance(module, act)]
    blocks = [("0", str(int(acts[0]) + 1)), (str(int(acts[0]) + 1), str(int(acts[1]) + 1))]
    for layer, (writer, reader) in zip(acts, blocks, strict=True):
        names = [f"{writer}.weight", f"{writer}.bias", f"{reader}.weight"]
        spectrum = gauss_newton_spectrum(risk.double().evaluated().select(names))
        rank = int((spectrum.values > TOLERANCE * spectrum.values[0]).sum())
        nullity = spectrum.parameters - rank
        assert (found[layer, "parameters"], found[layer, "nullity"]) == (spectrum.parameters, nullity)
        assert found[layer, "predicted"] == nullity or (act is nn.ReLU and found[layer, "predicted"] <= nullity)


def test_a_unit_that_is_on_for_two_samples_sees_two_directions():
    """Of 3 + 1 incoming weights 2 are seen; the scale is lost of both units."""
    model = two_units(nn.ReLU(), bias=True)
    risk = squared(model)
    z = next(iter(risk.batches()))[0] @ model[0].weight.data[0]
    model[0].bias.data[0] = -z.sort().values[-3:-1].mean()
    found = of_layer(risk)
    assert (found["seldom"], found["dead"], found["regular"]) == (1, 0, 2)
    assert found["nullity"] == found["predicted"] == 2 + 2


def test_how_sure_the_network_is_of_its_samples_has_no_say():
    """Logits of hundreds make the softmax's own curvature vanish below any tolerance, but not the weights' meaning."""
    model = drawn(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    x = normal(60, 4, seed=5)
    before = of_layer(classes(model, x, 3))
    model[2].weight.data *= 5
    model[2].bias.data *= 5
    assert of_layer(classes(model, x, 3))["nullity"] == before["nullity"] == 5


def test_a_nullity_that_too_few_samples_force_is_told_from_a_singular_one():
    model = drawn(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    found = of_layer(squared(model, samples=10))  # 20 rows for 5 (5 + 2) parameters
    assert (found["rank_bound"], found["forced"], found["nullity"], found["predicted"]) == (20, 15, 15, 15)
    found = of_layer(squared(model, samples=3))  # a unit sees three places
    assert found["rank_bound"] == 6
    assert of_layer(squared(model, samples=40), samples=10)["forced"] == 15


def test_pooled_units_cannot_show_more_than_one_place_a_sample():
    """Two units of 10 + 8 weights: six samples have 48 rows, but a unit shows six values alone."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 8))
    x = normal(6, 1, 5, 5, seed=6)
    risk = EmpiricalRisk(drawn(model), nn.functional.mse_loss, (x, normal(6, 8, seed=7)))
    found = of_layer(risk)
    assert (found["rank_bound"], found["forced"]) == (2 * (6 + 8), 8)
    spectrum = gauss_newton_spectrum(risk.select(["0.weight", "0.bias", "4.weight"]))
    assert found["nullity"] == 36 - int((spectrum.values > TOLERANCE * spectrum.values[0]).sum())
    # What the places of all units span with their outgoing weights is not made twice: 2 x 2 directions less.
    assert found["nullity"] == found["predicted"] + 4 == 12


def test_of_a_wide_layer_the_units_nearest_to_a_singularity_stand_for_it():
    model = drawn(nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)))
    model[0].bias.data[[7, 23]] = -50
    found = of_layer(squared(model, 200), max_parameters=20)
    assert [found[name] for name in ("units", "channels", "parameters", "dead")] == [3, 40, 18, 2]
    assert found["nullity"] == found["predicted"] == 2 * 6 + 1


def test_layers_that_do_not_fit_are_counted(monkeypatch):
    model = two_units(nn.Tanh())
    small = ask(squared(model), max_parameters=3)
    assert small == {("", "layers"): 0, ("", "too_large"): 1, ("", "tolerance"): TOLERANCE}
    monkeypatch.setattr(singularity, "NUMBERS", 10)
    assert ask(squared(model))["", "too_large"] == 1
    monkeypatch.undo()
    monkeypatch.setattr(singularity, "OUTPUTS", 0)
    assert ask(squared(model))["", "too_large"] == 1


def test_behind_a_group_norm_there_is_a_nullity_and_no_prediction():
    model = drawn(nn.Sequential(nn.Linear(4, 6), GroupNorm(6, groups=2), nn.ReLU(), nn.Linear(6, 2)))
    found = of_layer(squared(model), "2")
    assert "nullity" in found
    assert "predicted" not in found


def test_frozen_weights_and_unknown_readers_leave_a_layer_out():
    model = two_units(nn.Tanh())
    model[0].weight.requires_grad_(False)
    assert ask(squared(model))["", "layers"] == 0


def test_samples_that_meet_in_eval_mode_are_refused():
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    model = drawn(nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"outputs that depend on their own sample alone; .* running statistics"):
        ask(squared(model))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"tolerance must be from 1e-13 \(rounding\) to 1; got 0; 1e-10 is usual"):
        Singularity(tolerance=0)
    model = two_units(nn.Tanh())
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"parameters must be finite .* measure before that"):
        ask(squared(model))
    with pytest.raises(ValueError, match="at least one trainable parameter; this model has none: unfreeze one"):
        ask(squared(model.requires_grad_(False)))
