"""The encoder of non-speech sound: frames that tell time, whatever the company and the length."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.encoders.audio import load_audio_encoder
from xllm_speech.records import WaveBatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained transformer of one layer that reads 1.28 s at once."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    path = tmp_path_factory.mktemp("ast")
    torch.manual_seed(0)
    config = ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_length=128)
    ASTModel(config).save_pretrained(path)
    ASTFeatureExtractor(max_length=128).save_pretrained(path)
    return path


def waves(*lengths: int) -> WaveBatch:
    x_BN = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        x_BN[row, :length] = torch.randn(length, generator=torch.Generator().manual_seed(length)) * 0.1
    return WaveBatch(x_BN, torch.tensor(lengths))


def test_frames_of_a_recording_do_not_depend_on_the_others(folder):
    encoder = load_audio_encoder(str(folder))
    together = encoder(waves(16000, 4000, 50000))
    assert together.lens_B.tolist() == [10, 3, 32]  # a patch every 100 ms, also where windows of 1.2 s meet
    for row, length in enumerate((16000, 4000, 50000)):
        alone = encoder(waves(length))
        torch.testing.assert_close(together.x_BND[row, : alone.lens_B[0]], alone.x_BND[0], atol=1e-5, rtol=1e-5)


def test_foreign_folders_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_audio_encoder(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type `bert`"):
        load_audio_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="feature extractor cannot be loaded"):
        load_audio_encoder(str(tmp_path))
