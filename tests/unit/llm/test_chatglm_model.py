from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_model import rotary_table
from xllm_speech.llm.prefix import Prefix, find_prefix, padding_mask, prefix_mask, prefix_positions

SOP, EOP, MASK, GMASK, PAD = 60, 61, 62, 63, 3
PROMPTS = [[10, 11, 12, 13, 14, GMASK, SOP], [20, 21, GMASK, SOP], [30, MASK, 31, 32, SOP]]
ANSWERS = [[15, 16, EOP], [22, 23, 24, 25, EOP], [33, EOP]]
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def padded(rows, side, fill):
    longest = max(len(row) for row in rows)
    blank = [[fill] * (longest - len(row)) for row in rows]
    return torch.tensor([b + row if side == "left" else row + b for b, row in zip(blank, rows, strict=True)])


def batch(side, rows=None):
    rows = rows or [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    return padded(rows, side, PAD), padded([[1] * len(row) for row in rows], side, 0)


def reference(model, ids):
    """Logits of one unpadded sequence, one position and one head at a time, straight from the description."""
    config, weights = model.config, model.state_dict()
    c = ids.index(SOP)
    place = ids.index(GMASK) if GMASK in ids[:c] else ids.index(MASK)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    half, alpha = width // 2, math.sqrt(2 * 28)
    frequencies = [torch.tensor(10_000.0 ** (-2 * i / half)).half().item() for i in range(half // 2)]

    def rotate(x, position):
        out = x.clone()
        for i, frequency in enumerate(frequencies):
            a, b = x[i], x[i + half // 2]
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            out[i], out[i + half // 2] = a * cos - b * sin, b * cos + a * sin
        return out

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    rows = [(p, 0) if p < c else (place, p - c + 1) for p in range(len(ids))]
    x = weights["transformer.word_embeddings.weight"][ids]
    for layer in range(config.num_layers):
        name = f"transformer.layers.{layer}"
        a = norm(x, f"{name}.input_layernorm")
        mixed = linear(a, f"{name}.attention.query_key_value").view(len(ids), heads, 3 * width)
        seen = torch.zeros(len(ids), heads, width)
        for h in range(heads):
            q, k, v = mixed[:, h].split(width, dim=-1)
            q, k = (
                torch.stack([torch.cat([rotate(t[p, :half], rows[p][0]), rotate(t[p, half:], rows[p][1])])
                             for p in range(len(ids))])
                for t in (q, k)
            )
            for p in range(len(ids)):
                visible = [j for j in range(len(ids)) if j < c or j <= p]
                seen[p, h] = ((k[visible] @ q[p]) / math.sqrt(width)).softmax(0) @ v[visible]
        y = alpha * a + linear(seen.flatten(1), f"{name}.attention.dense")
        m = norm(y, f"{name}.post_attention_layernorm")
        h4 = F.gelu(linear(m, f"{name}.mlp.dense_h_to_4h"), approximate="tanh")
        x = alpha * m + linear(h4, f"{name}.mlp.dense_4h_to_h")
    return norm(x, "transformer.final_layernorm") @ weights["lm_head.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_each_sequence_by_itself(tiny, side):
    ids, mask = batch(side)
    both = [tiny(ids, attention_mask=mask).logits, tiny(ids).logits]  # a missing mask is read from the pads at the ends
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        alone = reference(tiny, prompt + answer)
        for logits in both:
            torch.testing.assert_close(logits[row][mask[row].bool()], alone, **CLOSE)


def test_loss_and_gradient_are_those_of_the_sequences_alone(tiny):
    tiny.requires_grad_(False)
    embedding = tiny.get_input_embeddings()
    alone, losses, counts = [], [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([prompt + answer])
        embeds = embedding(ids).requires_grad_()
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = tiny(ids, inputs_embeds=embeds, labels=labels).loss
        (loss * len(answer)).backward()
        alone.append(embeds.grad[0])
        losses.append(loss * len(answer))
        counts.append(len(answer))
    labels = [[-100] * len(prompt) + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    for side in ("left", "right"):
        ids, mask = batch(side)
        embeds = embedding(ids).requires_grad_()
        out = tiny(ids, inputs_embeds=embeds, attention_mask=mask, labels=padded(labels, side, -100))
        torch.testing.assert_close(out.loss, sum(losses) / sum(counts), **CLOSE)
        (out.loss * sum(counts)).backward()
        assert bool(embeds.grad[mask == 0].eq(0).all())
        for row, gradient in enumerate(alone):
            torch.testing.assert_close(embeds.grad[row][mask[row].bool()], gradient, **CLOSE)
            assert float(gradient.abs().sum()) > 0
    assert all(weight.grad is None for weight in tiny.parameters())


@torch.no_grad()
def test_media_in_the_context_change_the_answer_and_are_seen_by_all_of_it(tiny):
    ids = torch.tensor([[0, 0, *PROMPTS[0]]])
    torch.manual_seed(3)
    embeds = tiny.get_input_embeddings()(ids)
    one, other = embeds.clone(), embeds.clone()
    one[:, :2], other[:, :2] = torch.randn(2, 32), torch.randn(2, 32)
    difference = (tiny(ids, inputs_embeds=one).logits - tiny(ids, inputs_embeds=other).logits).abs().amax(-1)
    assert bool((difference > 1e-3).all())
    # The last of the context is seen by the first: both directions, unlike a causal model.
    last = embeds.clone()
    last[:, 6] = torch.randn(32)
    assert float((tiny(ids, inputs_embeds=last).logits[:, 0] - tiny(ids).logits[:, 0]).abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_answers_of_a_left_padded_batch_are_those_of_its_prompts(tiny, options):
    ids, mask = batch("left", PROMPTS)
    options = {"max_new_tokens": 9, "do_sample": False, **options}
    together = tiny.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    indices = tiny.find_prefix(ids, mask)
    media = tiny.generate(
        inputs_embeds=tiny.get_input_embeddings()(ids), attention_mask=mask, sop_index_B=indices.sop_index_B,
        mask_index_B=indices.mask_index_B, **options,
    )
    uncached = tiny.generate(ids, use_cache=False, **options)[:, ids.shape[1] :]
    recognised = tiny.generate(inputs_embeds=tiny.get_input_embeddings()(ids), attention_mask=mask, **options)
    assert together.tolist() == media.tolist() == uncached.tolist() == recognised.tolist()
    copies = options.get("num_return_sequences", 1)
    alone = [tiny.generate(torch.tensor([prompt]), **options)[:, len(prompt) :] for prompt in PROMPTS]
    for row, answers in enumerate(alone):
        for copy, answer in enumerate(answers.tolist()):
            found = together[row * copies + copy].tolist()
            assert found[: len(answer)] == answer
            assert set(found[len(answer) :]) <= {PAD}
    assert len({tuple(answer) for answers in alone for answer in answers.tolist()}) > 1


@torch.no_grad()
def test_one_token_at_a_time_is_the_whole_at_once(tiny):
    ids, mask = batch("left")
    whole = tiny(ids, attention_mask=mask).logits
    split = ids.shape[1] - 2  # in the middle of the answers, the shortest of which has two tokens
    embeds = tiny.get_input_embeddings()(ids)
    first = tiny(inputs_embeds=embeds[:, :split], attention_mask=mask[:, :split], use_cache=True)
    parts, cache = [first.logits], first.past_key_values
    for place in range(split, ids.shape[1]):
        step = tiny(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
        parts.append(step.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], whole[real], **CLOSE)


def test_the_released_size_has_its_six_billion_parameters():
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig())
    assert sum(weight.numel() for weight in model.parameters()) == 6_173_286_400
    assert len(model.state_dict()) == 28 * 12 + 4


def test_new_weights_are_those_deepnorm_asks_for_and_stored_ones_stay(tiny, tmp_path):
    torch.manual_seed(0)
    fresh = ChatGLMForConditionalGeneration(tiny.config).state_dict()
    gain = (8 * 28) ** -0.25
    for name, inputs, outputs, factor in (
        ("attention.query_key_value", 32, 96, 1.0), ("attention.dense", 32, 32, gain),
        ("mlp.dense_h_to_4h", 32, 64, gain), ("mlp.dense_4h_to_h", 64, 32, gain),
    ):
        weight = fresh[f"transformer.layers.1.{name}.weight"]
        bound = factor * math.sqrt(6 / (inputs + outputs))
        assert 0.95 * bound < float(weight.abs().max()) <= bound
    tiny.save_pretrained(tmp_path)
    again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in tiny.state_dict().items())


@torch.no_grad()
def test_sampling_repeats_with_its_seed(tiny):
    ids = torch.tensor([PROMPTS[0]])
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(tiny.generate(ids, do_sample=True, temperature=3.0, top_k=0, max_new_tokens=12).tolist())
    assert runs[0] == runs[1] != runs[2]


def test_a_model_refuses_what_it_cannot_place(tiny):
    ids, mask = batch("right", PROMPTS)
    embeds = tiny.get_input_embeddings()(ids)
    cache = DynamicCache(config=tiny.config)
    for layer in range(3):
        cache.update(torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8), layer)
    with pytest.raises(ValueError, match="padded on the left"):
        tiny.generate(ids, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match="sop_index_B and mask_index_B must be given"):
        tiny(ids[:, :1], past_key_values=cache, attention_mask=mask[:, :3])
    with pytest.raises(ValueError, match="row 0 of the batch holds no <sop>"):
        tiny(inputs_embeds=embeds + 1, attention_mask=mask)
    with pytest.raises(ValueError, match="row 1 of the batch holds no <sop>"):
        tiny(torch.tensor([[1, GMASK, SOP], [1, GMASK, 2]]))
    with pytest.raises(ValueError, match=r"row 0 of the batch holds no \[gMASK\]"):
        tiny(torch.tensor([[1, SOP, GMASK]]))
    with pytest.raises(ValueError, match=r"attention_mask \(3, 6\), expected \(3, 7\)"):
        tiny(ids, attention_mask=mask[:, 1:])
    with pytest.raises(ValueError, match="fused attention"):
        tiny(ids, output_attentions=True)


@torch.no_grad()
def test_ids_of_pictures_are_never_generated(tiny):
    config = ChatGLMConfig(**(tiny.config.to_diff_dict() | {"image_token_count": 40}))
    model = ChatGLMForConditionalGeneration(config).eval()
    model.load_state_dict(tiny.state_dict())
    ids = torch.tensor([[50, 51, GMASK, SOP], [52, 53, GMASK, SOP]])
    free = tiny.generate(ids, max_new_tokens=8, do_sample=False, suppress_tokens=[EOP])[:, 4:]
    assert int(free.min()) < 40
    for options in ({"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}):
        made = model.generate(ids, max_new_tokens=8, suppress_tokens=[EOP], **options)[:, 4:]
        assert int(made.min()) >= 40


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(tiny, dtype):
    ids, mask = batch("left")
    exact = tiny(ids, attention_mask=mask).logits
    found = tiny.to(dtype)(ids, attention_mask=mask).logits
    assert found.dtype == dtype
    real = mask.bool()
    assert float((found.float() - exact)[real].norm() / exact[real].norm()) < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_checkpointed_activations_give_the_same_gradient(tiny):
    ids, mask = batch("left")
    labels = ids.masked_fill(mask == 0, -100)
    gradients = []
    for checkpointed in (False, True):
        tiny.train().zero_grad()
        if checkpointed:
            tiny.gradient_checkpointing_enable({"use_reentrant": False})
        tiny(ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append(tiny.transformer.layers[0].mlp.dense_h_to_4h.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_only_the_wanted_logits(tiny):
    ids, mask = batch("left")
    every = tiny(ids, attention_mask=mask).logits
    torch.testing.assert_close(tiny(ids, attention_mask=mask, logits_to_keep=2).logits, every[:, -2:])
    places = torch.tensor([1, 4])
    torch.testing.assert_close(tiny(ids, attention_mask=mask, logits_to_keep=places).logits, every[:, places])


def test_the_product_in_float16_at_every_dtype():
    positions = torch.arange(2048)
    product, _ = rotary_table(positions, 64, "float32", torch.float32)
    rounded, _ = rotary_table(positions, 64, "float16", torch.float32)
    difference = (rounded - product).abs()
    assert 0.46 < float(difference.max()) < 0.5
    assert 0.014 < float(difference[:128].max()) < 0.0155
    for dtype in (torch.bfloat16, torch.float16):
        cos, sin = rotary_table(positions, 64, "float16", dtype)
        assert cos.dtype == sin.dtype == dtype
        assert torch.equal(cos, rounded.to(dtype))
    exact, _ = rotary_table(positions, 64, "exact", torch.float32)
    frequency = 10_000.0 ** (-2 * 5 / 64)
    assert abs(float(exact[1999, 5]) - math.cos(1999 * frequency)) < 1e-3
    assert abs(float(product[1999, 5]) - math.cos(1999 * frequency)) > 1e-2


def test_the_first_sop_and_the_preferred_mask_count():
    ids = torch.tensor([[PAD, 5, MASK, GMASK, GMASK, SOP, SOP, GMASK], [MASK, 7, MASK, SOP, GMASK, SOP, 1, PAD]])
    assert [index.tolist() for index in find_prefix(ids, None, SOP, GMASK, MASK)] == [[5, 3], [3, 0]]
    assert padding_mask(torch.tensor([[PAD, PAD, 1, PAD, 2, PAD]]), PAD).tolist() == [[False, False, True, True, True, False]]


def test_padding_inside_a_prompt_takes_no_place():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1]]).bool()
    prefix = Prefix(torch.tensor([5]), torch.tensor([4]))
    positions = prefix_positions(mask, prefix)[0][:, mask[0]]
    assert positions.tolist() == [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]
    seen = prefix_mask(mask, prefix, 0)[0, 0]
    assert not bool(seen[mask[0]][:, 2:4].any())
    assert bool(seen.any(-1).all())
