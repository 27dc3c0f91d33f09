"""Attention against slow loops."""

from __future__ import annotations

import math

import torch

from xllm_speech.nn.attention import CrossAttention, SelfAttention, rotary_table, rotate, sinusoids


def test_relative_attention_equals_its_definition_pair_by_pair():
    torch.manual_seed(0)
    width, heads, length = 16, 2, 5
    layer = SelfAttention(width, heads, position="relative").double()
    torch.nn.init.normal_(layer.content_bias_HE)
    torch.nn.init.normal_(layer.position_bias_HE)
    x = torch.randn(1, length, width, dtype=torch.float64)
    out, _ = layer(x, mask=torch.tensor([True, True, True, True, False])[None, None, None])
    head_width = width // heads
    q, k, v = (part.view(length, heads, head_width) for part in layer.query_key_value(x[0]).chunk(3, -1))
    table = layer.linear_position(sinusoids(length, width, x.device).double()).view(-1, heads, head_width)
    expected = torch.zeros(length, heads, head_width, dtype=torch.float64)
    for h in range(heads):
        for i in range(length):
            scores = torch.stack([
                (q[i, h] + layer.content_bias_HE[h]) @ k[j, h]
                + (q[i, h] + layer.position_bias_HE[h]) @ table[length - 1 - (i - j), h]
                for j in range(4)
            ]) / math.sqrt(head_width)
            expected[i, h] = scores.softmax(0) @ v[:4, h]
    torch.testing.assert_close(out[0], layer.out(expected.reshape(length, width)))


def test_rotary_scores_depend_on_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    scores = {}
    for start in (0, 7, 300):
        qs = rotate(q.expand(1, 1, 12, 8), rotary_table(12, 8, q.device, start))
        ks = rotate(k.expand(1, 1, 12, 8), rotary_table(12, 8, q.device, start))
        scores[start] = qs[0, 0] @ ks[0, 0].T
    torch.testing.assert_close(scores[0], scores[7], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[0], scores[300], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(scores[0].diagonal(1), scores[0][0, 1].expand(11), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[0][0, 1], scores[0][0, 5])


def test_cache_gives_what_the_whole_sequence_gives():
    torch.manual_seed(0)
    layer = SelfAttention(16, 4)
    x = torch.randn(2, 6, 16)
    whole, _ = layer(x, causal=True)
    cache, steps = None, []
    for position in range(6):
        out, cache = layer(x[:, position : position + 1], causal=cache is None, cache=cache, use_cache=True)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-6, rtol=1e-5)


def test_cross_attention_to_many_zero_vectors_is_that_to_one():
    torch.manual_seed(0)
    layer = CrossAttention(16, 4, memory_width=10)
    x = torch.randn(2, 3, 16)
    one = layer(x, layer.project(torch.zeros(2, 1, 10)), None)
    many = layer(x, layer.project(torch.zeros(2, 50, 10)), None)
    torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-6)
