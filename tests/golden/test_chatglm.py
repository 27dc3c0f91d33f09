"""ChatGLM (v1) against vectors made by the original code in float32 (chatglm.md)."""

from __future__ import annotations

import json

import pytest
import torch

from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_model import rotary_table

CLOSE = {"atol": 5e-5, "rtol": 0}
EOP, PAD = 255, 3


@pytest.fixture(scope="module")
def vectors(shared_data):
    from safetensors.torch import load_file

    folder = shared_data / "oracles" / "chatglm"
    return {name: load_file(folder / f"{name}.safetensors") for name in ("io", "rope", "weights")}


@pytest.fixture(scope="module")
def model(shared_data, vectors):
    from safetensors import safe_open

    torch.set_num_threads(1)
    with safe_open(shared_data / "oracles" / "chatglm" / "io.safetensors", "pt") as stream:
        config = ChatGLMConfig(**json.loads(stream.metadata()["config"]), tie_word_embeddings=False)
    network = ChatGLMForConditionalGeneration(config).eval()
    network.load_state_dict(vectors["weights"])  # strict; the stored inv_freq is no parameter of ours
    return network


def test_rotary_table(vectors):
    cos, sin = rotary_table(torch.arange(64), 8, "float32", torch.float32)
    torch.testing.assert_close(cos, vectors["rope"]["tiny.cos"], **CLOSE)
    torch.testing.assert_close(sin, vectors["rope"]["tiny.sin"], **CLOSE)


@torch.no_grad()
def test_prompts_of_equal_length(model, vectors):
    io = vectors["io"]
    out = model(io["c1_plain.in.input_ids"], output_hidden_states=True, use_cache=True)
    torch.testing.assert_close(out.logits, io["c1_plain.logits"], **CLOSE)
    assert len(out.hidden_states) == len(io["c1_plain.hidden_states"]) == 4
    for ours, theirs in zip(out.hidden_states, io["c1_plain.hidden_states"], strict=True):
        torch.testing.assert_close(ours.transpose(0, 1), theirs, **CLOSE)
    for layer in (0, 2):
        cached = out.past_key_values.layers[layer]
        torch.testing.assert_close(cached.keys.permute(2, 0, 1, 3), io[f"c1_plain.past_key.layer{layer}"], **CLOSE)
        torch.testing.assert_close(cached.values.permute(2, 0, 1, 3), io[f"c1_plain.past_value.layer{layer}"], **CLOSE)


@torch.no_grad()
def test_training_batch_padded_on_the_right(model, vectors):
    io = vectors["io"]
    ids, labels = io["c4_train_rightpad.in.input_ids"], io["c4_train_rightpad.in.labels"]
    out = model(ids, attention_mask=(ids != PAD).long(), labels=labels, output_hidden_states=True)
    torch.testing.assert_close(out.loss, io["c4_train_rightpad.loss"][0], **CLOSE)
    real = ids != PAD
    torch.testing.assert_close(out.logits[real], io["c4_train_rightpad.logits"][real], **CLOSE)
    for ours, theirs in zip(out.hidden_states, io["c4_train_rightpad.hidden_states"], strict=True):
        torch.testing.assert_close(ours[real], theirs.transpose(0, 1)[real], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(model, vectors, use_cache):
    io = vectors["io"]
    out = model.generate(
        io["c1_plain.in.input_ids"], max_new_tokens=12, do_sample=False, suppress_tokens=[EOP], use_cache=use_cache,
        output_logits=True, return_dict_in_generate=True,
    )
    assert out.sequences.tolist() == io["c1_plain.greedy.sequences"].tolist()
    others = torch.arange(256) != EOP  # which the original run suppressed
    torch.testing.assert_close(
        torch.stack(out.logits, 1)[..., others], io["c1_plain.greedy.step_logits"][..., others], **CLOSE
    )


@torch.no_grad()
def test_three_beams(model, vectors):
    io = vectors["io"]
    out = model.generate(
        io["c1_plain.in.input_ids"], max_new_tokens=8, num_beams=3, do_sample=False, suppress_tokens=[EOP],
        return_dict_in_generate=True, output_scores=True,
    )
    assert out.sequences.tolist() == io["c1_plain.beam3.sequences"].tolist()
    # transformers has since changed the length it divides by (then 20 here, the whole sequence; now 8, the answer).
    torch.testing.assert_close(out.sequences_scores * 8, io["c1_plain.beam3.sequences_scores"] * 20, atol=5e-4, rtol=0)


def test_float16_angles_are_another_table(model, vectors):
    # The released weights were trained with them; the tiny model was not, so its vectors tell the two apart.
    config = ChatGLMConfig(**(model.config.to_diff_dict() | {"rotary_angles": "float16"}))
    other = ChatGLMForConditionalGeneration(config).eval()
    other.load_state_dict(vectors["weights"])
    with torch.no_grad():
        logits = other(vectors["io"]["c1_plain.in.input_ids"]).logits
    difference = (logits - vectors["io"]["c1_plain.logits"]).abs().max()
    assert 5e-5 < difference < 1e-2
