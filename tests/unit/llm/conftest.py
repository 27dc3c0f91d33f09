"""A tiny ChatGLM, its tokenizer, and a folder in the official layout that holds both."""

from __future__ import annotations

import json

import pytest
import torch

from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_tokenizer import train_chatglm_tokenizer

LINES = [
    "左上有红色的圆形，右下有绿色的旗子。",
    "问：什么颜色？答：红色",
    "abcdefghijklmnopqrstuvwxyz [](){}<>|:!0123456789",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ_/\\?",
]
REMOTE_CODE = "raise SystemExit('code of the folder was run')\n"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """Three layers, 64 ids: sop 60, eop 61, [MASK] 62, [gMASK] 63, pad 3; weights large enough for answers to differ."""
    torch.manual_seed(0)
    config = ChatGLMConfig(
        vocab_size=64, hidden_size=32, num_layers=3, num_attention_heads=4, inner_hidden_size=64, max_sequence_length=64,
        bos_token_id=60, eos_token_id=61, mask_token_id=62, gmask_token_id=63, pad_token_id=3, tie_word_embeddings=False,
    )
    model = ChatGLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.4)
    return model


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """Folder of a small tokenizer with all the special pieces."""
    folder = tmp_path_factory.mktemp("vocabulary")
    train_chatglm_tokenizer(LINES, folder)
    return folder


@pytest.fixture(scope="session")
def official(vocabulary, tmp_path_factory):
    """Sharded float16 .bin files, ice_text.model and JSON files as they are published; (folder, float32 weights)."""
    from xllm_speech.llm import ChatGLMTokenizer

    folder = tmp_path_factory.mktemp("official")
    tokenizer = ChatGLMTokenizer.from_pretrained(str(vocabulary))
    (folder / "ice_text.model").write_bytes((vocabulary / "ice_text.model").read_bytes())
    auto = {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    described = {
        "_name_or_path": "THUDM/chatglm-6b", "architectures": ["ChatGLMModel"], "auto_map": auto, "model_type": "chatglm",
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "mask_token_id": tokenizer.mask_token_id, "gmask_token_id": tokenizer.convert_tokens_to_ids("[gMASK]"),
        "pad_token_id": tokenizer.pad_token_id, "hidden_size": 32, "inner_hidden_size": 64, "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048, "num_attention_heads": 4, "num_layers": 2, "position_encoding_2d": True,
        "torch_dtype": "float16", "transformers_version": "4.23.1", "use_cache": True,
        "vocab_size": tokenizer.vocab_size + 7,
    }
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "name_or_path": "THUDM/chatglm-6b", "bos_token": "<sop>", "eos_token": "<eop>", "end_token": "</s>",
        "gmask_token": "[gMASK]", "mask_token": "[MASK]", "pad_token": "<pad>", "unk_token": "<unk>", "remove_space": False,
        "do_lower_case": False, "tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0,
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }))
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        (folder / f"{name}.py").write_text(REMOTE_CODE)
    torch.manual_seed(1)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**described))
    state = {name: torch.randn_like(weight) * 0.5 for name, weight in model.state_dict().items()}
    for name in state:
        if name.endswith("layernorm.weight"):
            state[name] += 1
    state = {name: weight.half() for name, weight in state.items()}
    state["lm_head.weight"] = state["transformer.word_embeddings.weight"].clone()
    for layer in range(2):
        state[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2).half()
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, inside in shards.items():
        torch.save({name: state[name] for name in inside}, folder / shard)
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder, {name: weight.float() for name, weight in state.items()}
