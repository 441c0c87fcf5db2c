"""A converted model has what it learned as far as that means anything, and the report says where it does not."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens import catalog
from normlens.nn import BatchNorm, GroupNorm, convert
from normlens.nn.convert import ConversionReport

SAME = {  # layers of torch, and the name of ours that is the same function of these inputs
    "BatchNorm1d": (nn.BatchNorm1d(6, eps=1e-3), "batch_norm", (5, 6)),
    "BatchNorm2d": (nn.BatchNorm2d(6, momentum=None), "batch_norm", (5, 6, 4, 3)),
    "BatchNorm3d": (nn.BatchNorm3d(6, affine=False), "batch_norm", (5, 6, 2, 3, 2)),
    "BatchNorm without statistics": (nn.BatchNorm2d(6, track_running_stats=False), "batch_norm", (5, 6, 4, 3)),
    "SyncBatchNorm": (nn.SyncBatchNorm(6), "batch_norm", (5, 6, 4)),
    "InstanceNorm": (nn.InstanceNorm2d(6), "instance_norm", (5, 6, 4, 3)),
    "InstanceNorm, affine": (nn.InstanceNorm1d(6, affine=True, eps=0.1), "instance_norm", (5, 6, 4)),
    "InstanceNorm, tracked": (nn.InstanceNorm1d(6, track_running_stats=True), "instance_norm", (5, 6, 4)),
    "GroupNorm": (nn.GroupNorm(2, 6, eps=0.5), "group_norm", (5, 6, 4, 3)),
    "LayerNorm": (nn.LayerNorm(6, eps=0.1), "layer_norm", (5, 6)),
    "LayerNorm without bias": (nn.LayerNorm(6, bias=False), "layer_norm", (5, 6)),
    "LayerNorm over an image": (nn.LayerNorm((6, 4, 3), elementwise_affine=False), "layer_norm", (5, 6, 4, 3)),
    "RMSNorm": (nn.RMSNorm(6), "rms_norm", (5, 6)),
    "RMSNorm with eps": (nn.RMSNorm(6, eps=0.3), "rms_norm", (5, 6)),
}


def learned(layer, draw, shape):
    """A copy in float64 with parameters perturbed and two batches seen."""
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * draw(*parameter.shape)
        for _ in range(0 if isinstance(layer, nn.SyncBatchNorm) else 2):
            layer(draw(*shape) * 2 + 1)
    return layer


def network(norm=nn.BatchNorm2d, **settings):
    """A small network whose names are ``first.norm``, ``second.norm``."""

    def block(channels):
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, 6, 3, padding=1), norm=norm(6, **settings)))

    return nn.Sequential(OrderedDict(first=block(2), relu=nn.ReLU(), second=block(6)))


@pytest.mark.parametrize("kind", SAME)
def test_torchs_layer_and_ours_of_its_kind_are_the_same_function_after_a_conversion(draw, kind):
    layer, name, shape = SAME[kind]
    theirs = learned(layer, draw, shape)
    ours = nn.Sequential(copy.deepcopy(theirs))
    report = convert(ours, name)
    assert type(ours[0]) is catalog.load("normlens.nn", name)
    assert report.layers[0].lost == ()
    for training in (False,) if isinstance(layer, nn.SyncBatchNorm) else (False, True, False):
        x = draw(*shape) * 3 - 1
        assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", catalog.names("normlens.nn"))
@pytest.mark.parametrize("source", [nn.BatchNorm2d, partial(nn.GroupNorm, 2)], ids=["batch_norm", "group_norm"])
def test_every_layer_can_take_the_place_and_what_is_kept_lost_and_new_accounts_for_every_tensor(draw, source, name):
    model = network(source).double().train(False)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * draw(*p.shape)
    before = copy.deepcopy(model)
    for conversion in convert(model, name).layers:
        old, new = before.get_submodule(conversion.name), model.get_submodule(conversion.name)
        assert type(new) is catalog.load("normlens.nn", name)
        had, has = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (old, new))
        told = {kept.split(" as ")[-1] for kept in conversion.kept if "=" not in kept}
        assert told | set(conversion.new) == set(has)
        assert {kept.split(" as ")[0] for kept in conversion.kept if "=" not in kept} | {
            lost for lost in conversion.lost if "=" not in lost
        } == set(had)
        for tensor in told & set(had):
            assert torch.equal(has[tensor], had[tensor]), tensor
        assert not any(m.training for m in new.modules())
        assert all(t.dtype == torch.float64 for t in has.values() if t.is_floating_point())


def test_the_weights_are_the_very_objects_so_that_ties_hold_and_an_optimizer_goes_on():
    model = network()
    model.second.norm.weight = model.first.norm.weight
    model.first.norm.bias.requires_grad_(False)
    weight, bias = model.first.norm.weight, model.first.norm.bias
    convert(model, "group_norm")
    assert model.first.norm.weight is weight
    assert model.second.norm.weight is weight
    assert model.first.norm.bias is bias
    assert not model.first.norm.bias.requires_grad


def test_running_statistics_of_a_batch_norm_serve_a_batch_renorm_and_come_back(draw):
    model = nn.Sequential(learned(nn.BatchNorm1d(6), draw, (5, 6)))
    mean, var = model[0].running_mean.clone(), model[0].running_var.clone()
    there = convert(model, "batch_renorm").layers[0]
    assert "running_var as running_std" in there.kept
    assert_close(model[0].running_std, (var + model[0].eps).sqrt(), rtol=1e-15, atol=0)
    back = convert(model, "batch_norm").layers[0]
    assert "running_std as running_var" in back.kept
    assert_close(model[0].running_var, var, rtol=1e-12, atol=0)
    assert torch.equal(model[0].running_mean, mean)
    assert int(model[0].num_batches_tracked) == 2


def test_the_running_variance_of_an_instance_norm_is_not_taken_for_that_of_a_batch(draw):
    tracked = nn.InstanceNorm1d(6, track_running_stats=True, affine=True)
    model = nn.Sequential(learned(tracked, draw, (5, 6, 4)))
    report = convert(model, "batch_norm").layers[0]
    assert report.lost == ("running_mean", "running_var", "num_batches_tracked")
    assert report.new == report.lost
    assert model[0].running_var.tolist() == [1.0] * 6


def test_statistics_of_another_shape_stay_behind_with_their_count():
    model = nn.Sequential(nn.BatchNorm1d(6))
    model(torch.arange(12.0).reshape(2, 6))
    from normlens.nn.sequence_batch_norm import SequenceBatchNorm

    report = convert(model, partial(SequenceBatchNorm, mode="frame", max_length=3)).layers[0]
    assert report.lost == ("running_mean", "running_var", "num_batches_tracked")
    assert model[0].num_batches_tracked.tolist() == [0, 0, 0]


def test_weights_per_pixel_have_no_place_in_a_layer_with_weights_per_channel():
    model = nn.Sequential(nn.LayerNorm((6, 4, 3)))
    assert convert(model, "layer_norm").layers[0].lost == ("weight", "bias")


def test_settings_go_over_where_the_user_chose_them_and_partial_has_the_last_word():
    model = network(eps=1e-3, momentum=0.5)
    report = convert(model, partial(GroupNorm, groups=2)).layers[0]
    assert (model.first.norm.groups, model.first.norm.eps) == (2, 1e-3)
    assert "eps=0.001" in report.kept
    assert "momentum=0.5" in report.lost
    convert(model, partial(BatchNorm, eps=0.25))
    assert (model.first.norm.eps, model.first.norm.momentum) == (0.25, 0.1)
    convert(model, partial(BatchNorm, momentum=0.2))
    assert (model.first.norm.eps, model.first.norm.momentum) == (0.25, 0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
def test_device_dtype_and_mode_are_those_of_the_layer_or_of_its_model(dtype, affine):
    model = network(affine=affine, track_running_stats=False).to("meta", dtype)
    model.first.norm.eval()
    convert(model, "batch_norm", "first.*")
    convert(model, partial(BatchNorm, affine=True, track_running_stats=True))
    for block in (model.first, model.second):
        assert type(block.norm) is BatchNorm
        floating = [t for t in block.norm.state_dict().values() if t.is_floating_point()]
        assert floating
        assert all(t.is_meta and t.dtype == dtype for t in floating)
    assert not model.first.norm.training
    assert model.second.norm.training


def test_a_layer_that_stands_in_two_places_is_converted_once_and_stands_in_both():
    shared = nn.BatchNorm1d(6)
    block = nn.Sequential(shared)
    model = nn.ModuleDict({"a": block, "b": nn.Sequential(nn.Linear(6, 6), shared), "c": block})
    report = convert(model, "batch_norm", "b.1")
    assert [layer.name for layer in report.layers] == ["a.0"]
    assert type(model["a"][0]) is BatchNorm
    assert model["a"][0] is model["b"][1]
    assert model["c"] is model["a"]


def test_a_layer_inside_of_a_layer_and_one_of_the_class_asked_for_stay_as_they_are():
    class Composed(BatchNorm):
        def __init__(self) -> None:
            super().__init__(6)
            self.inner = nn.BatchNorm1d(6)

    model, outer = nn.ModuleList([Composed(), nn.BatchNorm1d(6), BatchNorm(6)]), None
    outer = model[2]
    report = convert(model, "batch_norm", ["1", "2"])
    assert [layer.name for layer in report.layers] == ["1"]
    assert model[2] is outer
    assert type(model[0].inner) is nn.BatchNorm1d
    assert "inner.weight" in convert(model, "group_norm", "0").layers[0].lost
    assert convert(model, "batch_norm", "2").layers == ()


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, ["first.norm", "second.norm"]),
        ("*", ["first.norm", "second.norm"]),
        ("second*", ["second.norm"]),
        (["second.norm", "first.norm"], ["first.norm", "second.norm"]),
    ],
)
def test_layers_are_chosen_by_globs_and_names(layers, names):
    model = network()
    assert [layer.name for layer in convert(model, "group_norm", layers).layers] == names
    assert [name for name, m in model.named_modules() if type(m) is GroupNorm] == names


def test_the_report_reads_as_one_line_per_layer():
    model = network(eps=1e-3)
    model.first.norm.register_forward_hook(lambda *_: None)
    first, second = repr(convert(model, "group_norm")).splitlines()[1:]
    kept = "BatchNorm2d -> GroupNorm; kept weight, bias, eps=0.001; lost running_mean, running_var, num_batches_tracked"
    assert first == f"first.norm: {kept}, hooks"
    assert second == f"second.norm: {kept}"
    assert repr(ConversionReport(())) == "ConversionReport, layers converted: 0"


def test_a_converted_network_trains_as_one_that_was_built_so(draw):
    model, x = network(nn.BatchNorm2d).double(), draw(4, 2, 5, 5)
    built = network(partial(GroupNorm, groups=3)).double()
    built.load_state_dict(model.state_dict(), strict=False)
    convert(model, partial(GroupNorm, groups=3))
    for one in (model, built):
        one(x).square().sum().backward()
    for p, q in zip(model.parameters(), built.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_layer_by_itself_is_refused():
    with pytest.raises(ValueError, match=r"inside of a model; got a BatchNorm2d by itself.*wrap it in nn.Seq"):
        convert(nn.BatchNorm2d(6), "group_norm")


@pytest.mark.parametrize("layers", ["third.*", ["first.norm", "third.*"]])
def test_a_name_of_no_layer_is_refused(layers):
    with pytest.raises(ValueError, match=r"got 'third.\*', which matches none; there are first.norm, second.norm"):
        convert(network(), "group_norm", layers)
    with pytest.raises(ValueError, match="which matches none; there are none at all"):
        convert(nn.Sequential(nn.Linear(2, 2)), "group_norm")


def test_a_refused_conversion_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(4), nn.LazyBatchNorm1d())
    before = list(model)
    with pytest.raises(ValueError, match="groups that divide num_features; got num_features=4, groups=3"):
        convert(model, partial(GroupNorm, groups=3), ["0", "1"])
    with pytest.raises(ValueError, match="LazyBatchNorm1d has not seen its first batch"):
        convert(model, "batch_norm")
    with pytest.raises(catalog.UnknownNameError, match="did you mean 'group_norm'"):
        convert(model, "group_nrm")
    assert list(model) == before


def test_a_setting_of_none_goes_only_where_the_class_takes_none():
    model = nn.Sequential(nn.BatchNorm1d(6, momentum=None))
    assert "momentum=None" in convert(model, "power_norm").layers[0].lost
    assert model[0].momentum == 0.1
    assert "momentum=None" in convert(nn.Sequential(nn.BatchNorm1d(6, momentum=None)), "batch_renorm").layers[0].kept


def test_a_count_of_batches_stays_behind_where_it_would_count_for_other_statistics():
    model = nn.Sequential(nn.BatchNorm1d(6))
    model(torch.arange(12.0).reshape(2, 6))
    assert "num_batches_tracked" in convert(model, "power_norm").layers[0].new
    assert int(model[0].num_batches_tracked) == 0
