"""A key-value memory answers by angles: closed forms of its sharpening, of signs for components, and of their noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.weighted.key_value_memory import KeyValueMemory, attention, bipolar, soft_abs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def memory_of(keys, values=None, **settings):
    values = torch.eye(len(keys), dtype=torch.float64) if values is None else values
    memory = KeyValueMemory(len(keys), keys.shape[1], values.shape[1], dtype=torch.float64, **settings)
    memory.write(keys, values)
    return memory


def similarities(memory, query, **how):
    """The cosines behind the attention of a softmax, up to a constant that every key shares."""
    return memory.read(query, **how).log() / memory.beta


@pytest.mark.parametrize(
    ("a", "expected"),
    [(0.0, 0.0133857018), (0.5, 0.5000453979), (-0.5, 0.5000453979), (1.0, 0.9933074550), (-1.0, 0.9933074550)],
)
def test_the_soft_absolute_value_at_its_known_places(a, expected):
    assert soft_abs(torch.tensor(a, dtype=torch.float64)).item() == pytest.approx(expected, abs=5e-11)


def test_the_soft_absolute_value_is_even_and_steeper_with_beta(draw):
    a = torch.tanh(draw(50))
    assert_close(soft_abs(a), soft_abs(-a), rtol=1e-14, atol=0)
    assert_close(soft_abs(a, beta=1e4), (a.abs() > 0.5).double(), rtol=0, atol=1e-10)


def test_attention_is_the_share_of_the_sharpened_similarity(draw):
    a = torch.tanh(draw(4, 6))
    for w, e in (
        (attention(a), soft_abs(a)),
        (attention(a, beta=3.0), soft_abs(a, beta=3.0)),
        (attention(a, sharpening="softmax", beta=3.0), torch.exp(3 * a)),
    ):
        assert_close(w, e / e.sum(1, keepdim=True), rtol=1e-13, atol=0)


def test_orthogonal_keys_return_their_values_and_the_leak_of_the_others():
    keys, leak, kept = 3 * torch.eye(4, dtype=torch.float64), 0.0133857018, 0.9933074550
    p = memory_of(keys)(keys)
    assert_close(p.diagonal(), torch.full((4,), kept / (kept + 3 * leak), dtype=torch.float64), rtol=1e-8, atol=0)
    assert_close(p.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("quantize", [None, "bipolar", "binary"])
def test_only_angles_count_so_a_gain_on_keys_or_queries_does_nothing(draw, quantize):
    keys, query = draw(5, 64), draw(3, 64)
    once = memory_of(keys).read(query, quantize=quantize)
    assert_close(memory_of(7 * keys).read(0.2 * query, quantize=quantize), once, rtol=1e-12, atol=1e-14)
    noisy = [memory_of(c * keys).read(query, quantize=quantize, noise_std=0.5, generator=generator()) for c in (1, 7)]
    assert_close(noisy[0], noisy[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("rho", "expected"), [(0.3, 0.19397), (0.6, 0.40967), (0.9, 0.71287)])
def test_signs_of_correlated_normal_components_have_the_arcsine_for_a_cosine(draw, rho, expected):
    assert 2 / math.pi * math.asin(rho) == pytest.approx(expected, abs=5e-6)
    d = 400_000
    a = draw(d)
    b = rho * a + math.sqrt(1 - rho**2) * draw(d)
    memory = memory_of(torch.stack([b, bipolar(a)]), sharpening="softmax")
    found = similarities(memory, a[None], quantize="bipolar")[0]
    assert (found[0] - found[1]).item() == pytest.approx(expected - 1, abs=5 / math.sqrt(d))


def test_random_bipolar_keys_have_cosines_of_variance_one_over_the_dimension(draw):
    keys = bipolar(draw(300, 512))
    cosines = (keys @ keys.T / 512)[*torch.triu_indices(300, 300, 1)]
    count = len(cosines)
    assert abs(cosines.mean().item()) < 5 / math.sqrt(512 * count)
    assert cosines.var().item() * 512 == pytest.approx(1, abs=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("quantize", [None, "bipolar"])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_noise_on_the_components_divides_the_cosine_by_its_known_factor(draw, quantize, std):
    d = 200_000
    query = draw(1, d)
    other = query if quantize else 0.6 * query + 0.8 * draw(1, d)
    anchor = -other  # its cosine falls as much as that of the key rises
    memory = memory_of(100 * torch.cat([other, anchor]), sharpening="softmax", beta=1.0)
    found = similarities(memory, query, quantize=quantize, noise_std=std, generator=generator(2))[0]
    rho = 1.0 if quantize else 0.6
    wanted = rho / math.sqrt(1 + std**2)
    assert (found[0] - found[1]).item() / 2 == pytest.approx(wanted, abs=5 / math.sqrt(d))


def balanced(draw, count, d):
    """Keys of which exactly half of the components are positive."""
    ranks = draw(count, d).argsort(1).argsort(1)
    return torch.where(ranks < d // 2, -1.0, 1.0).double() * draw(count, d).abs()


def test_binary_keys_give_the_bipolar_cosine_where_half_of_the_components_are_one(draw):
    keys, query = balanced(draw, 6, 64), balanced(draw, 3, 64)
    memory = memory_of(keys)
    binary, signs = (memory.read(query, quantize=how) for how in ("binary", "bipolar"))
    assert_close(binary, signs, rtol=1e-13, atol=0)
    assert float((signs - memory.read(query)).abs().max()) > 1e-3


def test_the_exact_identity_of_zeros_and_ones_holds_for_all_keys(draw):
    s, t = bipolar(draw(5, 64)), bipolar(draw(5, 64))
    b, c = (s + 1) / 2, (t + 1) / 2
    exact = 4 * (b * c).sum(1) / 64 - 2 * (b.sum(1) + c.sum(1)) / 64 + 1
    assert_close((s * t).sum(1) / 64, exact, rtol=1e-14, atol=1e-15)
    memory = memory_of(t, sharpening="softmax")
    approximate = 4 * b @ c.T / 64 - 1
    assert_close(memory.read(s, quantize="binary"), torch.softmax(10 * approximate, 1), rtol=1e-12, atol=1e-15)


def test_retrieval_stays_right_while_the_signal_is_above_the_largest_of_the_others(draw):
    keys = draw(100, 512)
    memory = memory_of(keys)
    right = torch.arange(100)
    for std, lower, upper in ((2.0, 0.99, 1.0), (20.0, 0.0, 0.6)):
        signal, others = math.sqrt(512 / (1 + std**2)), math.sqrt(2 * math.log(100))
        assert (signal > 2 * others) is (std == 2.0)
        found = memory.read(keys, quantize="bipolar", noise_std=std, generator=generator(1)).argmax(1)
        assert lower <= float((found == right).double().mean()) <= upper


def test_keys_go_to_the_next_free_places_and_places_never_written_take_no_part(draw):
    keys, values, query = draw(5, 16), draw(5, 3), draw(4, 16)
    memory = KeyValueMemory(8, 16, 3, dtype=torch.float64)
    memory.write(keys[:2], values[:2])
    memory.write(keys[2:], values[2:])
    assert_close(memory(query), memory_of(keys, values)(query), rtol=1e-14, atol=1e-15)
    assert memory.written.tolist() == [True] * 5 + [False] * 3
    memory.clear()
    assert not memory.keys.any()
    memory.write(keys[:1], values[:1])
    assert_close(memory(query), values[:1].expand(4, 3), rtol=1e-14, atol=0)


def test_the_state_dict_rebuilds_the_memory(draw):
    memory, fresh = memory_of(draw(5, 16)), KeyValueMemory(5, 16, 5, dtype=torch.float64)
    fresh.load_state_dict(memory.state_dict())
    query = draw(2, 16)
    assert torch.equal(fresh(query), memory(query))


@pytest.mark.parametrize("sharpening", ["softabs", "softmax"])
def test_derivatives_in_the_query_are_exact(draw, sharpening):
    memory, query = memory_of(draw(4, 6), sharpening=sharpening), draw(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(memory, query)
    assert torch.autograd.gradgradcheck(memory, query, draw(3, 4).requires_grad_())


def test_what_is_written_is_detached_and_half_precision_is_computed_in_float32(draw):
    keys = draw(3, 8).requires_grad_()
    memory = memory_of(keys)
    assert not memory.keys.requires_grad
    query = draw(2, 8, dtype=torch.float16)
    assert torch.equal(memory.float()(query), memory(query.float()).half())


@pytest.mark.parametrize("std", [0.0, 0.7])
def test_the_noise_is_the_callers_alone(draw, std):
    memory, query = memory_of(draw(3, 8)), draw(2, 8)
    before = torch.random.get_rng_state()
    first, again = (memory.read(query, noise_std=std, generator=generator(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, memory(query)) is (std == 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_meant_is_refused(draw):
    memory = KeyValueMemory(2, 8, 3)
    with pytest.raises(ValueError, match=r"at least one key to read; got none; call write"):
        memory(torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"keys \(M, 8\) and values \(M, 3\); got \(2, 8\) and \(1, 3\); one value"):
        memory.write(torch.zeros(2, 8), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"a free place for each key; got 3 keys for 2 of 2 places; call clear"):
        memory.write(torch.zeros(3, 8), torch.zeros(3, 3))
    memory.write(torch.ones(1, 8), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"queries \(N, 8\); got torch.float32 of shape \(1, 9\); flatten"):
        memory(torch.zeros(1, 9))
    with pytest.raises(ValueError, match=r"got torch.int64 of shape \(1, 8\)"):
        memory(torch.zeros(1, 8).long())
    with pytest.raises(ValueError, match=r"quantize to be None, 'bipolar' or 'binary'; got 'ternary'; choose one"):
        memory.read(torch.zeros(1, 8), quantize="ternary")
    with pytest.raises(ValueError, match=r"a generator for noise; got noise_std=0.5 without one; pass generator"):
        memory.read(torch.zeros(1, 8), noise_std=0.5)
    with pytest.raises(ValueError, match="sharpening to be 'softabs' or 'softmax'; got 'relu'; choose one of them"):
        KeyValueMemory(2, 8, 3, sharpening="relu")
    with pytest.raises(ValueError, match=r"a positive beta; got 0.0; use 10.0"):
        KeyValueMemory(2, 8, 3, beta=0.0)
    with pytest.raises(ValueError, match="KeyValueMemory needs num_keys of at least 1; got 0"):
        KeyValueMemory(0, 8, 3)
    assert repr(memory) == "KeyValueMemory(num_keys=2, key_dim=8, num_values=3, sharpening=softabs, beta=10.0)"
