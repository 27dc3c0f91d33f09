"""Model directories: round trips, moved folders, and words for what is wrong."""

from __future__ import annotations

import shutil

import pytest
import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.models.asr import SearchConfig, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig, LossConfig
from xllm_speech.models.checkpoints import FeatureConfig, find_model, load_asr, save_asr
from xllm_speech.records import AsrBatch, FbankBatch
from xllm_speech.text.tokens import TokenTable


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2]),
        cif=CifConfig(channels=16), loss=LossConfig(unit_weight=0.3),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    table = TokenTable.train(["你好世界", "再见"], "char")
    model = build_asr_model(config, table.size, table.sos_id).eval()
    model.cmvn.set_statistics(torch.randn(80), torch.rand(80) + 0.5)
    folder = tmp_path / "model"
    folder.mkdir()
    save_asr(folder, model.state_dict(), config, table, FeatureConfig())
    return model, folder


def test_loads_bit_for_bit_also_after_being_moved(saved, tmp_path):
    model, folder = saved
    elsewhere = tmp_path / "far" / "away"
    shutil.move(folder, elsewhere)
    loaded = load_asr(elsewhere)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    batch = AsrBatch(["a"], FbankBatch(torch.randn(1, 120, 80), torch.tensor([120])), 1.2)
    ours, theirs = (m.recognise(batch, SearchConfig())[0][0] for m in (model, loaded.model))
    assert ours == theirs


def test_finds_the_model_of_an_experiment(saved, tmp_path):
    _, folder = saved
    experiment = tmp_path / "exp"
    shutil.copytree(folder, experiment / "best")
    assert find_model(experiment) == experiment / "best"
    shutil.copytree(folder, experiment / "average")
    assert find_model(experiment) == experiment / "average"
    with pytest.raises(CheckpointError, match=r"holds no model\.yaml"):
        find_model(tmp_path)
    with pytest.raises(CheckpointError, match="no such model directory"):
        find_model(tmp_path / "nowhere")


def test_refuses_broken_and_foreign_files(saved):
    _, folder = saved
    weights, described = (folder / "model.safetensors").read_bytes(), (folder / "model.yaml").read_text()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be loaded"):
        load_asr(folder)
    (folder / "model.safetensors").write_bytes(weights)
    for change, message in (
        (("blocks: 3", "blocks: 4"), "missing, first encoder.blocks.3"),
        (("feedforward: 48", "feedforward: 64"), "the configuration says"),
        (("xllm-cif-asr-1", "something-else"), "format `something-else`"),
        (("label_smoothing", "label_smoothin"), "did you mean `model.loss.label_smoothing`"),
        (("vocab: 9", "vocab: 10"), "9 tokens in its table, 10"),
    ):
        (folder / "model.yaml").write_text(described.replace(change[0], change[1], 1))
        with pytest.raises(CheckpointError, match=message):
            load_asr(folder)
    (folder / "model.yaml").write_text(described)
    (folder / "tokens.txt").unlink()
    with pytest.raises(CheckpointError, match=r"tokens\.txt"):
        load_asr(folder)
