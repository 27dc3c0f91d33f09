from __future__ import annotations

from pathlib import Path

import pytest

from xllm_speech.base.config import load_config, save_config
from xllm_speech.base.errors import ConfigError
from xllm_speech.datasets.config import DataConfig


def test_defaults_and_overrides(tmp_path: Path) -> None:
    overrides = ["train=data/train", "channel=1", "speeds=[0.9,1.0,1.1]", "spec_augment.enabled=false"]
    config = load_config(None, DataConfig, overrides)
    assert (config.train, config.channel, config.speeds) == ("data/train", "1", [0.9, 1.0, 1.1])
    assert not config.spec_augment.enabled
    save_config(tmp_path / "c.yaml", config)
    assert load_config(tmp_path / "c.yaml", DataConfig) == config


@pytest.mark.parametrize(("override", "words"), [
    ("trian=x", "did you mean `train`"), ("token_kind=bpe", "char, sentencepiece, mixed"), ("dev_share=0", "dev_share"),
    ("max_sec=500", "max_duration_sec"), ("min_sec=31", "leave nothing"), ("speeds=[]", "speeds"), ("speeds=[9]", "speeds"),
    ("image_share=2", "image_share"), ("channel=left", "channel"), ("num_workers=-1", "num_workers"),
    ("max_duration_sec=loud", "max_duration_sec"), ("vocab_size=2", "vocab_size"), ("max_cuts=0", "max_cuts"),
    ("spec_augment.max_frame_fraction=2", "max_frame_fraction"), ("spec_augment.maks=2", "unknown key `spec_augment.maks`"),
])
def test_mistakes_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, DataConfig, [override])
