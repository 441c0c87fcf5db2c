from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlens import catalog
from normlens.curvature.hessian import hessian
from normlens.data.digits import digits
from normlens.models.transformer import Transformer
from normlens.risk import EmpiricalRisk

TOLERANCE = 1e3 * torch.finfo(torch.float64).eps


def examples(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def perturbed(model: nn.Module) -> nn.Module:
    """The model in float64 with no parameter left at zero or one."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.double().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


def torch_layer(block: Any, width: int, heads: int, norm: type[nn.Module]) -> nn.TransformerEncoderLayer:
    """PyTorch's pre-norm encoder layer with the weights of one of our blocks."""
    theirs = nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
    ).double()
    attention, forward = block.attention, block.feed_forward
    pairs = [
        (attention.queries_keys_values, theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias),
        (attention.output, theirs.self_attn.out_proj.weight, theirs.self_attn.out_proj.bias),
        (forward.linear, theirs.linear1.weight, theirs.linear1.bias),
        (forward.output, theirs.linear2.weight, theirs.linear2.bias),
    ]
    for ours, weight, bias in pairs:
        weight.data = ours.weight.data
        bias.data = torch.zeros_like(bias) if ours.bias is None else ours.bias.data
    theirs.norm1, theirs.norm2 = (norm(width).double() for _ in range(2))
    if norm is nn.LayerNorm:
        theirs.norm1.load_state_dict(attention.norm.state_dict())
        theirs.norm2.load_state_dict(forward.norm.state_dict())
    return theirs


@pytest.mark.parametrize(("norm", "other"), [("layer_norm", nn.LayerNorm), (None, nn.Identity)])
def test_the_network_is_pytorchs_pre_norm_encoder_on_the_rows_of_the_image(norm: str | None, other: Any) -> None:
    model: Any = perturbed(Transformer((2, 5, 3), 7, norm=norm, width=12, heads=3, blocks=2))
    x = examples(4, 2, 5, 3)
    rows = torch.stack([x[:, :, t].flatten(1) for t in range(5)], 1)
    hidden = model.embed(rows) + model.position
    for block in (model.block1, model.block2):
        hidden = torch_layer(block, 12, 3, other)(hidden)
    if norm is not None:
        hidden = nn.functional.layer_norm(hidden, (12,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(x), model.head(hidden.flatten(1)), rtol=TOLERANCE, atol=TOLERANCE)


def test_without_positions_the_tokens_move_with_the_rows_and_with_them_they_do_not() -> None:
    model: Any = perturbed(Transformer((1, 6, 4), 3, norm="rms_norm", width=8, heads=2))
    x, order, tokens = examples(5, 1, 6, 4), [3, 0, 5, 1, 2, 4], []
    model.head.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].detach().unflatten(1, (6, 8))))
    for scale in (1, 0):
        model.position.data *= scale
        model(x), model(x[:, :, order])
    assert float((tokens[1] - tokens[0][:, order]).abs().max()) > 1e-3
    torch.testing.assert_close(tokens[3], tokens[2][:, order], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm", "dynamic_tanh", "group_norm"])
def test_a_norm_of_single_samples_treats_every_token_by_itself(norm: str) -> None:
    model: Any = perturbed(Transformer((1, 6, 4), 3, norm=norm, width=8, heads=2))
    seen: list[tuple[Tensor, Tensor]] = []
    layer = model.block1.attention.norm
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(examples(5, 1, 6, 4))
    (entered, left), own = seen[0], model.block1.attention.norm
    assert entered.shape == (5 * 6, 8)
    alone = torch.cat([own(token[None]) for token in entered])
    torch.testing.assert_close(left, alone, rtol=TOLERANCE, atol=TOLERANCE)


def test_without_relu_and_with_queries_of_zero_the_model_is_affine() -> None:
    model: Any = perturbed(Transformer((1, 6, 4), 3, norm=None, width=8, heads=2))
    for block in (model.block1, model.block2):
        block.feed_forward.relu = nn.Identity()
        block.attention.queries_keys_values.weight.data[:8] = 0  # then all tokens are seen alike
        block.attention.queries_keys_values.bias.data[:8] = 0
    x, y = examples(2, 3, 1, 6, 4)
    torch.testing.assert_close(model((x + y) / 2), (model(x) + model(y)) / 2, rtol=TOLERANCE, atol=TOLERANCE)


def test_batch_norm_pools_all_tokens_of_all_images() -> None:
    model: Any = perturbed(Transformer((1, 6, 4), 3, norm="batch_norm", width=8, heads=2))
    x = examples(5, 1, 6, 4)
    hidden = model.embed(x[:, 0]) + model.position
    model(x)
    mean = model.block1.attention.norm.running_mean
    torch.testing.assert_close(mean, 0.1 * hidden.detach().mean((0, 1)), rtol=TOLERANCE, atol=TOLERANCE)


def test_behind_the_activation_a_norm_stands_in_the_feed_forward_part_alone() -> None:
    model = Transformer((1, 4, 4), 3, norm="layer_norm", placement="post-activation", width=8, heads=2, blocks=2)
    kind = catalog.load("normlens.nn", "layer_norm")
    found = {name: module.num_features for name, module in model.named_modules() if isinstance(module, kind)}
    assert found == {"block1.feed_forward.hidden_norm": 16, "block2.feed_forward.hidden_norm": 16}


def test_weights_keep_the_mean_square_and_what_is_added_is_small() -> None:
    model: Any = Transformer((3, 32, 32), 10, norm="layer_norm", width=256, heads=4, blocks=3)
    block = model.block1
    expected = {
        model.embed: 1 / 96,
        block.attention.queries_keys_values: 1 / 256,
        block.attention.output: 1 / 256 / 36,
        block.feed_forward.linear: 2 / 256,
        block.feed_forward.output: 1 / 512 / 36,
    }
    for layer, variance in expected.items():
        # the standard error of a sample variance is sqrt(2 / n) of the variance
        assert abs(float(layer.weight.detach().var()) / variance - 1) < 4 * (2 / layer.weight.numel()) ** 0.5


@pytest.mark.parametrize("norm", [None, "rms_norm", "batch_norm"])
def test_products_with_the_hessian_are_differences_of_gradients(norm: str | None) -> None:
    model: Any = perturbed(Transformer((1, 3, 4), 3, norm=norm, width=4, heads=2, blocks=1))
    x, y = examples(6, 1, 3, 4), torch.arange(6) % 3
    operator = hessian(EmpiricalRisk(model, nn.functional.cross_entropy, (x, y), mode="train"))
    v = examples(operator.shape[0], seed=3)
    got = operator @ v
    step = torch.finfo(torch.float64).eps ** (1 / 3)

    def gradient(sign: float) -> Tensor:
        at = nn.utils.parameters_to_vector(model.parameters()).detach()
        twin: Any = Transformer((1, 3, 4), 3, norm=norm, width=4, heads=2, blocks=1).double()
        nn.utils.vector_to_parameters(at + sign * step * v, twin.parameters())
        loss = nn.functional.cross_entropy(twin(x), y)
        parts = torch.autograd.grad(loss, list(twin.parameters()), materialize_grads=True, allow_unused=True)
        return torch.cat([part.flatten() for part in parts])

    want = (gradient(1) - gradient(-1)) / (2 * step)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("norm", "placement"),
    [
        (None, "pre-activation"),
        ("layer_norm", "pre-activation"),
        pytest.param("rms_norm", "pre-activation", marks=pytest.mark.slow),
        pytest.param("scale_norm", "pre-activation", marks=pytest.mark.slow),
        ("dynamic_tanh", "pre-activation"),
        pytest.param("batch_norm", "pre-activation", marks=pytest.mark.slow),
        ("layer_norm", "post-activation"),
    ],
)
def test_three_epochs_on_the_digits_reach_nine_of_ten(norm: str | None, placement: Any) -> None:
    data = digits()
    model = Transformer(data.shape, len(data.classes), norm=norm, placement=placement)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = data.loader(64, seed=0)
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    x, y = data.test
    with torch.no_grad():
        accuracy = float((model.eval()(x).argmax(1) == y).float().mean())
    assert accuracy >= 0.9


def test_a_norm_that_pools_over_positions_is_refused_by_its_name() -> None:
    model = Transformer((1, 8, 8), 10, norm="instance_norm")
    with pytest.raises(ValueError, match=r"InstanceNorm\(32\) needs at least one spatial dimension.*; use LayerNorm"):
        model(torch.zeros(2, 1, 8, 8))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads must divide the width, got width=32 and heads=5: pass e\.g\. heads=1"):
        Transformer((1, 8, 8), 10, heads=5)


@pytest.mark.parametrize("sizes", [{"width": 0}, {"heads": 0}, {"blocks": 0}])
def test_sizes_that_are_not_positive_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be one or more positive numbers"):
        Transformer((1, 8, 8), 10, **sizes)
