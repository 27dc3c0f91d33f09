from __future__ import annotations

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.llm import ChatGLMConfig

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "inner_hidden_size": 64,
    "bos_token_id": 60, "eos_token_id": 61, "mask_token_id": 62, "gmask_token_id": 63, "pad_token_id": 3,
}


def test_defaults_are_the_released_model():
    config = ChatGLMConfig()
    assert config.special_ids == (130_004, 130_005, 3, 130_000, 130_001)
    assert (config.num_hidden_layers, config.rotary_angles, config.image_token_count) == (28, "float16", 0)


def test_the_first_release_has_its_ids_behind_those_of_pictures():
    config = ChatGLMConfig(vocab_size=150_528, bos_token_id=150_004, eos_token_id=150_005)
    assert config.special_ids == (150_004, 150_005, 20_003, 150_000, 150_001)
    assert config.image_token_count == 20_000


def test_survives_a_round_trip(tmp_path):
    config = ChatGLMConfig(**SMALL, deepnorm_depth=5)
    config.save_pretrained(tmp_path)
    again = ChatGLMConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert (again.deepnorm_depth, again.rotary_angles, again.special_ids) == (5, "float32", config.special_ids)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gmask_token_id": None}, "gmask_token_id: None is no id of a vocabulary of 64"),
        ({"eos_token_id": 64}, "eos_token_id: 64"),
        ({"hidden_size": 40}, "multiple of 4 times the 4 attention heads"),
        ({"rotary_angles": "double"}, "not one of float16, float32, exact"),
        ({"quantization_bit": 4}, "quantization_bit"),
        ({"pre_seq_len": 128}, "prefix-tuned"),
        ({"position_encoding_2d": False}, "two-dimensional"),
    ],
)
def test_what_cannot_work_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        ChatGLMConfig(**{**SMALL, **change})
