"""Episodes hold what they are asked for, and a memory recalls what its keys tell apart."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normlens.models.few_shot import Episode, draw_episode, episode_accuracy, episode_loss

INPUTS = torch.arange(60.0).reshape(60, 1)
LABELS = torch.arange(60) % 6 + 2  # classes 2 to 7, ten of each


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def episode(seed: int = 0) -> Episode:
    return draw_episode(INPUTS, LABELS, ways=4, shots=3, queries=5, generator=generator(seed))


def signatures(inputs: Tensor) -> Tensor:
    """A key for each class, orthogonal to the others."""
    return F.one_hot(inputs[:, 0].long() % 6, 6).double()


def test_an_episode_holds_different_examples_of_each_class_under_numbers_of_its_own() -> None:
    drawn = episode()
    support, queries = drawn.support.flatten().long(), drawn.queries.flatten().long()
    assert len({*support.tolist(), *queries.tolist()}) == 4 * (3 + 5)
    assert drawn.support_labels.bincount().tolist() == [3] * 4
    assert drawn.query_labels.bincount().tolist() == [5] * 4
    original = [LABELS[support[drawn.support_labels == way]].unique() for way in range(4)]
    assert len({int(label) for (label,) in original}) == 4
    for way in range(4):
        assert set(LABELS[queries[drawn.query_labels == way]].tolist()) == {int(original[way])}


def test_the_generator_decides_the_episode() -> None:
    assert torch.equal(episode(1).support, episode(1).support)
    assert not torch.equal(episode(1).support, episode(2).support)


def test_every_class_comes_up_as_often() -> None:
    source = generator(3)
    drawn = [draw_episode(INPUTS, LABELS, ways=2, shots=1, queries=1, generator=source) for _ in range(900)]
    counts = torch.cat([LABELS[e.support.flatten().long()] for e in drawn]).bincount()[2:]
    # 900 episodes take each of six classes with probability 1/3
    assert float((counts - 300).abs().max()) < 4.5 * math.sqrt(900 * 2 / 9)


def test_orthogonal_keys_are_recalled_whole_and_constant_ones_by_chance() -> None:
    assert episode_accuracy(signatures, episode()) == 1
    assert episode_accuracy(lambda x: torch.ones(len(x), 6), episode()) == 0.25


def test_the_loss_of_orthogonal_keys_is_the_leak_of_the_soft_absolute_value() -> None:
    kept, leak = 0.9933074550, 0.0133857018
    wanted = -math.log(3 * kept / (3 * kept + 9 * leak))
    assert float(episode_loss(signatures, episode())) == pytest.approx(wanted, rel=1e-7)
    assert float(episode_loss(lambda x: torch.ones(len(x), 6), episode())) == pytest.approx(math.log(4), rel=1e-6)


def test_the_loss_trains_the_keys_until_unseen_episodes_are_recalled() -> None:
    weight = (0.5 * torch.randn(6, 32, generator=generator(2), dtype=torch.float64)).requires_grad_()
    mixing = 0.3 * torch.ones(6, 6, dtype=torch.float64) + torch.eye(6, dtype=torch.float64)

    def embed(inputs: Tensor) -> Tensor:
        return torch.tanh(signatures(inputs) @ mixing @ weight)

    before = float(episode_loss(embed, episode(9)).detach())
    for step in range(60):
        (gradient,) = torch.autograd.grad(episode_loss(embed, episode(step)), weight)
        weight.data -= gradient
    assert float(episode_loss(embed, episode(9)).detach()) < 0.5 * before
    assert episode_accuracy(embed, episode(9), quantize="bipolar") == 1


def test_noise_beyond_the_signal_leaves_chance() -> None:
    def embed(inputs: Tensor) -> Tensor:
        return signatures(inputs) @ torch.randn(6, 256, generator=generator(1), dtype=torch.float64)

    source = generator(5)
    found = [
        [episode_accuracy(embed, episode(n), quantize="bipolar", noise_std=std, generator=source) for n in range(20)]
        for std in (1.0, 1000.0)
    ]
    assert min(found[0]) == 1
    assert abs(sum(found[1]) / 20 - 0.25) < 0.15


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((7, 1, 1), "an episode of 7 ways needs as many classes with 2 examples; got 6; ask for fewer"),
        ((2, 6, 5), "an episode of 2 ways needs as many classes with 11 examples; got 0; ask for fewer"),
        ((2, 0, 5), "at least one of each; got ways=2, shots=0, queries=5; use 5, 1, 5"),
    ],
)
def test_an_episode_that_cannot_be_drawn_is_refused(numbers: tuple[int, int, int], message: str) -> None:
    ways, shots, queries = numbers
    with pytest.raises(ValueError, match=message):
        draw_episode(INPUTS, LABELS, ways=ways, shots=shots, queries=queries, generator=generator())
