from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from normlens.run.isolation import undisturbed
from support.fingerprint import fingerprint
from support.networks import NETWORKS, Whole, batch, conv_batch_norm, mlp


@pytest.mark.parametrize("network", NETWORKS)
def test_a_training_forward_and_backward_inside_leaves_no_trace(network):
    model = NETWORKS[network]()
    x, y = batch()
    nn.functional.cross_entropy(model(x), y).backward()
    before = fingerprint(model)
    with undisturbed(model, seed=3):
        nn.functional.cross_entropy(model(x), y).backward()
    assert fingerprint(model) == before


def test_a_state_mixed_of_modes_and_frozen_parameters_is_restored_exactly():
    model = conv_batch_norm()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    before = fingerprint(model)
    with undisturbed(model):
        model.train()
        model.requires_grad_(True)
    assert fingerprint(model) == before


def test_keyboard_interrupt_passes_and_the_state_is_restored():
    model = conv_batch_norm()
    before = fingerprint(model)
    with pytest.raises(KeyboardInterrupt), undisturbed(model):
        interrupt(model(batch()[0]))
    assert fingerprint(model) == before


def interrupt(_: torch.Tensor) -> None:
    raise KeyboardInterrupt


def test_replaced_parameters_buffers_and_submodules_are_the_same_objects_afterwards():
    model = conv_batch_norm()
    objects = [*model.parameters(), *model.buffers(), *model.modules()]
    with undisturbed(model):
        model[1].weight = nn.Parameter(torch.ones(4))
        model[2].running_mean = torch.ones(4)
        model[3] = nn.Tanh()
    now = [*model.parameters(), *model.buffers(), *model.modules()]
    assert all(a is b for a, b in zip(objects, now, strict=True))


def test_a_graph_that_the_user_holds_can_still_be_differentiated():
    model, (x, y) = mlp(), batch()
    loss = nn.functional.cross_entropy(model(x), y)
    (expected,) = torch.autograd.grad(loss, model[0].weight, retain_graph=True)
    with undisturbed(model):
        model[0].weight.data.add_(1)
    loss.backward()
    assert torch.equal(model[0].weight.grad, expected)


def test_counters_and_lists_on_a_module_are_put_back():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(12, 3)
            self.calls, self.seen, self.by_size = 0, [], {}

        def forward(self, x):
            self.calls += 1
            self.seen.append(x)
            self.by_size[len(x)] = x
            return super().forward(x)

    model = Counting()
    model(batch()[0])
    seen = model.seen
    with undisturbed(model):
        model(batch(7)[0])
    assert model.calls == 1
    assert model.seen is seen
    assert len(seen) == 1
    assert list(model.by_size) == [32]


def test_hooks_on_parameters_do_not_fire_inside_and_fire_again_afterwards():
    model, (x, y) = mlp(), batch()
    fired = []
    model[0].weight.register_hook(lambda grad: fired.append("hook"))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: fired.append("post"))
    with undisturbed(model):
        nn.functional.cross_entropy(model(x), y).backward()
    assert fired == []
    nn.functional.cross_entropy(model(x), y).backward()
    assert fired == ["hook", "post"]


def test_a_model_compiled_in_place_runs_eagerly_inside_and_compiled_afterwards():
    calls = []

    def backend(graph, inputs):
        def run(*args):
            calls.append(1)
            return graph.forward(*args)

        return run

    torch._dynamo.reset()
    model, (x, _) = Whole(mlp()), batch()
    model.compile(backend=backend)
    model(x)
    with undisturbed(model):
        model(x)
    assert len(calls) == 1
    model(x)
    assert len(calls) == 2


def test_inside_gradients_are_on_and_autocast_is_off_and_both_are_restored():
    model = mlp()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with undisturbed(model):
            assert torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert model(batch()[0]).dtype == torch.float32
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")


def test_inside_inference_mode_a_gradient_can_be_taken():
    model, (x, y) = mlp(), batch()
    with torch.inference_mode(), undisturbed(model):
        nn.functional.cross_entropy(model(x), y).backward()
        assert model[0].weight.grad is not None
    assert model[0].weight.grad is None


def test_attention_and_cudnn_flags_are_restored():
    flags = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.benchmark, torch.get_default_dtype())
    with undisturbed(mlp()):
        torch.backends.cuda.enable_flash_sdp(not flags[0])
        torch.backends.cudnn.benchmark = not flags[1]
        torch.set_default_dtype(torch.float64)
    assert flags == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.benchmark, torch.get_default_dtype())


def test_new_and_old_settings_of_tf32_mixed_do_not_upset_it():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # makes torch's old getters raise
        with undisturbed(mlp()):
            pass
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_the_seed_makes_dropout_inside_repeatable_whatever_the_users_random_state():
    model, (x, _) = nn.Dropout(0.5), batch()
    drawn = []
    for user_seed in (1, 2):
        torch.manual_seed(user_seed)
        with undisturbed(model, seed=5):
            drawn.append(model(x))
    assert torch.equal(*drawn)


def test_lazy_parameters_are_refused_with_the_way_out():
    with (
        pytest.raises(ValueError, match="run one forward pass before the lens is opened"),
        undisturbed(nn.LazyLinear(3)),
    ):
        pass


def test_while_isolated_a_model_can_be_copied_and_saved():
    model = conv_batch_norm()
    with undisturbed(model):
        copied = copy.deepcopy(model)
        torch.save(model.state_dict(), io.BytesIO())
    assert fingerprint(copied)["parameters"] == fingerprint(model)["parameters"]
