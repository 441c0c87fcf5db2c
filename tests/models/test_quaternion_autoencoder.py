"""The quaternion auto-encoder and its real twin have the published sizes; gray pixels fix the one and not the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from normlens import catalog
from normlens.models.quaternion_autoencoder import CAE, QCAE, as_quaternions, chroma


def images(count: int, channels: int) -> torch.Tensor:
    return torch.rand(count, channels, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("model", "channels", "count"), [(QCAE, 4, 6444), (CAE, 3, 24_875)])
def test_sizes_are_the_published_ones(model: type[torch.nn.Module], channels: int, count: int) -> None:
    built = model()
    assert sum(p.numel() for p in built.parameters()) == count
    x = images(2, channels)
    assert built(x).shape == x.shape
    assert built.act1(built.conv1(x)).shape[2:] == (4, 6)
    assert built.act2(built.conv2(built.act1(built.conv1(x)))).shape[2:] == (2, 3)
    assert [isinstance(module, torch.nn.Hardtanh) for module in built.children()] == [False, True] * 4


@pytest.mark.parametrize("model", [QCAE, CAE])
def test_the_seed_decides_every_weight_and_the_global_state_none(
    model: Callable[..., torch.nn.Module], global_random_states: Callable[[], str]
) -> None:
    before = global_random_states()
    first, again, other = (model(seed=seed).state_dict() for seed in (3, 3, 4))
    assert global_random_states() == before
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], other[name]) is name.endswith("bias")


def test_the_real_twin_is_convolutions_with_hardtanh_between_them() -> None:
    model, x = CAE(seed=2).double(), images(2, 3).double()
    state, hidden = model.state_dict(), x
    for number in (1, 2):
        weight, bias = (state[f"conv{number}.{key}"] for key in ("weight", "bias"))
        hidden = F.conv2d(hidden, weight, bias, stride=2, padding=1).clamp(-1, 1)
    for number in (1, 2):
        weight, bias = (state[f"deconv{number}.{key}"] for key in ("weight", "bias"))
        hidden = F.conv_transpose2d(hidden, weight, bias, stride=2, padding=1, output_padding=1).clamp(-1, 1)
    torch.testing.assert_close(model(x), hidden, rtol=1e-13, atol=1e-13)
    assert model(x[:, :, :7, :9]).shape[2:] == (8, 12)  # four does not divide them: they come back larger
    fans = (3 + 32) * 9
    spread = float(state["conv1.weight"].std())
    assert spread == pytest.approx((2 / fans) ** 0.5, rel=0.1)


def test_a_quaternion_that_keeps_one_gray_pixel_is_one_and_a_real_matrix_need_not_be() -> None:
    """Why the one knows colors from gray alone: ``q u = u`` has one solution, ``A u = u`` has many."""
    from normlens.nn.weighted.hamilton import hamilton_matrix

    u = torch.tensor([0.0, 1, 1, 1], dtype=torch.float64)
    columns = torch.stack([hamilton_matrix(q.reshape(4, 1, 1)) @ u for q in torch.eye(4, dtype=torch.float64)], 1)
    torch.testing.assert_close(torch.linalg.solve(columns, u), torch.eye(4, dtype=torch.float64)[0])
    assert int(torch.linalg.matrix_rank(columns[1:])) == 3  # without the real part one of four numbers is free
    gray = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(gray @ u[1:], u[1:])


def test_colors_become_quaternions_without_a_real_part() -> None:
    x = images(2, 3)
    q = as_quaternions(x)
    assert torch.equal(q[:, 1:], x)
    assert not q[:, 0].any()
    with pytest.raises(ValueError, match=r"needs images \(N, 3, H, W\); got \(2, 4, 8, 12\); repeat a gray channel"):
        as_quaternions(images(2, 4))


def test_chroma_is_what_gray_has_none_of() -> None:
    x = images(2, 3).double()
    assert float(chroma(x[:, :1].expand(-1, 3, -1, -1)).abs().max()) < 1e-16
    torch.testing.assert_close(chroma(x).sum(1), torch.zeros(2, 8, 12, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(chroma(x) + x.mean(1, keepdim=True), x)


def test_it_is_no_classifier_and_not_listed_as_one() -> None:
    assert not {"quaternion_autoencoder", "few_shot"} & set(catalog.names("normlens.models"))
