"""A tiny random model directory, made once."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """An untrained model whose units come about three a second, with a table of a few characters."""
    from xllm_speech.models.asr import build_asr_model
    from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig, LossConfig
    from xllm_speech.models.checkpoints import FeatureConfig, save_asr
    from xllm_speech.text.tokens import TokenTable

    torch.manual_seed(0)
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2]),
        cif=CifConfig(channels=16), loss=LossConfig(unit_weight=0.3),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    table = TokenTable.train(["天地玄黄宇宙洪荒日月盈昃"], "char")
    model = build_asr_model(config, table.size, table.sos_id)
    torch.nn.init.normal_(model.decoder.vocabulary.weight, std=2.0)
    model.cmvn.set_statistics(torch.full((80,), 12.0), torch.full((80,), 4.0))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save_asr(folder, model.state_dict(), config, table, FeatureConfig())
    return folder
