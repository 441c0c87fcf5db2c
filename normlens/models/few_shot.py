"""Few-shot episodes: classes that are known from a few examples each, which a key-value memory has to recall."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from normlens.nn.weighted.key_value_memory import KeyValueMemory, Quantize, Sharpening, attention

__all__ = ["Episode", "draw_episode", "episode_accuracy", "episode_loss"]


class Episode(NamedTuple):
    """One question: some classes, numbered anew from 0, with examples to remember and examples to recall.

    Attributes:
        support: ``(ways * shots, ...)``, what is written.
        support_labels: ``(ways * shots,)``, in ``0, ..., ways - 1``.
        queries: ``(ways * queries, ...)``, what is asked.
        query_labels: ``(ways * queries,)``.
    """

    support: Tensor
    support_labels: Tensor
    queries: Tensor
    query_labels: Tensor


def draw_episode(
    inputs: Tensor, labels: Tensor, *, ways: int, shots: int, queries: int, generator: torch.Generator
) -> Episode:
    """Draw ``ways`` classes and ``shots + queries`` different examples of each.

    Args:
        inputs: ``(N, ...)``, e.g. the images of ``normlens.data.digits()``.
        labels: ``(N,)``, the class of each, a non-negative integer.
        ways: classes of the episode.
        shots: examples of each class to remember.
        queries: examples of each class to recall.
        generator: decides classes and examples.

    Raises:
        ValueError: a number below 1, or too few classes with ``shots + queries`` examples.
    """
    needed = shots + queries
    if min(ways, shots, queries) < 1:
        raise ValueError(
            f"an episode needs at least one of each; got ways={ways}, shots={shots}, queries={queries}; use 5, 1, 5"
        )
    classes = (labels.bincount() >= needed).nonzero().flatten()
    if len(classes) < ways:
        raise ValueError(
            f"an episode of {ways} ways needs as many classes with {needed} examples; got {len(classes)}; "
            "ask for fewer ways, shots or queries"
        )
    chosen = classes[torch.randperm(len(classes), generator=generator)[:ways]]
    rows = torch.stack([_some(labels == c, needed, generator) for c in chosen])
    numbers = torch.arange(ways, device=labels.device)
    support, asked = rows[:, :shots].flatten(), rows[:, shots:].flatten()
    return Episode(inputs[support], numbers.repeat_interleave(shots), inputs[asked], numbers.repeat_interleave(queries))


def episode_loss(
    embed: Callable[[Tensor], Tensor], episode: Episode, *, sharpening: Sharpening = "softabs", beta: float = 10.0
) -> Tensor:
    """Cross-entropy in nats of the labels recalled, differentiable in ``embed``: the loss that trains the keys.

    ``-mean log p_label`` with ``p = w V`` over the real keys, ``w`` the :func:`attention` of the cosines.

    Source: Karunaratne et al., Nature Communications 12:2468, 2021, doi:10.1038/s41467-021-22364-0.

    Args:
        embed: maps inputs to keys ``(N, key_dim)``.
        episode: what to remember and what to recall.
        sharpening: of the attention.
        beta: its steepness.
    """
    keys, queries = (F.normalize(embed(inputs), dim=1) for inputs in (episode.support, episode.queries))
    weights = attention(queries @ keys.T, sharpening=sharpening, beta=beta)
    recalled = weights @ F.one_hot(episode.support_labels).to(weights.dtype)
    return F.nll_loss(recalled.clamp_min(torch.finfo(weights.dtype).tiny).log(), episode.query_labels)


@torch.no_grad()
def episode_accuracy(
    embed: Callable[[Tensor], Tensor],
    episode: Episode,
    *,
    quantize: Quantize | None = None,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
    sharpening: Sharpening = "softabs",
    beta: float = 10.0,
) -> float:
    """Write the support of an episode into a :class:`KeyValueMemory` and return the share of queries that it recalls.

    Args:
        embed: maps inputs to keys ``(N, key_dim)``.
        episode: what to remember and what to recall.
        quantize: how keys and queries are read; see :meth:`KeyValueMemory.read`.
        noise_std: of the noise on each stored component.
        generator: the source of that noise.
        sharpening: of the attention.
        beta: its steepness.
    """
    keys, values = embed(episode.support), F.one_hot(episode.support_labels)
    memory = KeyValueMemory(
        len(keys),
        keys.shape[1],
        values.shape[1],
        sharpening=sharpening,
        beta=beta,
        device=keys.device,
        dtype=keys.dtype,
    )
    memory.write(keys, values.to(keys.dtype))
    recalled = memory.read(embed(episode.queries), quantize=quantize, noise_std=noise_std, generator=generator)
    return float((recalled.argmax(1) == episode.query_labels).double().mean())


def _some(member: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` different places at which ``member`` is true."""
    places = member.nonzero().flatten()
    return places[torch.randperm(len(places), generator=generator)[:count]]
