"""An official folder of ChatGLM-6B is checked against its config.json (BLIP-2 folders: test_blip2)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm_speech.models.checkpoints import load_foreign

SIZES = {
    "model_type": "chatglm", "vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2,
    "inner_hidden_size": 24, "max_sequence_length": 32, "bos_token_id": 30, "eos_token_id": 31, "mask_token_id": 32,
    "gmask_token_id": 33, "pad_token_id": 3,
}  # fmt: skip


def write(folder: Path, weights: dict[str, torch.Tensor], **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**SIZES, **changes}))
    names = sorted(weights)
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for shard, inside in shards.items():
        torch.save({name: weights[name] for name in inside}, folder / shard)
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    state = ChatGLMForConditionalGeneration(ChatGLMConfig(**SIZES)).state_dict()
    made = {name: value.half().clone() for name, value in state.items()}
    return made | {"transformer.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}


def test_official_folder(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write(tmp_path, weights)
    state, report = load_foreign(tmp_path, layout="chatglm")
    assert state.keys() == weights.keys() - set(report.ignored)
    assert list(report.ignored) == ["transformer.layers.0.attention.rotary_emb.inv_freq"]
    assert report.renamed == {}
    assert report.settings["llm_width"] == 16
    assert any("ice_text.model" in note for note in report.notes)
    ChatGLMForConditionalGeneration(ChatGLMConfig(**SIZES)).load_state_dict(state)
    del weights["lm_head.weight"]
    write(tmp_path, weights)
    state, report = load_foreign(tmp_path, layout="chatglm")
    assert "lm_head.weight" not in state
    assert "shares" in report.missing["lm_head.weight"]


@pytest.mark.parametrize(("change", "lost", "message"), [
    ({"num_layers": 3}, "", r"transformer\.layers\.2\..* is missing"),
    ({"inner_hidden_size": 32}, "", r"dense_h_to_4h\.weight \[24, 16\].* needs \[32, 16\]"),
    ({}, "transformer.final_layernorm.bias", r"transformer\.final_layernorm\.bias is missing"),
    ({"num_layers": 900_000_000}, "", r"num_layers 900000000 in config\.json, but 29 tensors in all"),
    ({"hidden_size": 1 << 62}, "", "its sizes make no network"),
    ({"hidden_size": 17}, "", r": hidden_size 17 must be a multiple"),
    ({"model_type": "llama"}, "", "not a ChatGLM-6B folder .*model_type `llama`"),
    ({"quantization_bit": 4}, "", "quantised before"),
])  # fmt: skip
def test_folders_that_do_not_fit(change: dict, lost: str, message: str, weights: dict, tmp_path: Path) -> None:
    write(tmp_path, {name: value for name, value in weights.items() if name != lost}, **change)
    with pytest.raises(CheckpointError, match=message):
        load_foreign(tmp_path, layout="chatglm")
