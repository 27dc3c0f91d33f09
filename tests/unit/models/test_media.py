"""Frozen encoders of media: each kind through its own, frozen, and with a word where one is absent."""

from __future__ import annotations

import pytest
import torch
from tiny import World

from xllm_speech.base.errors import ConfigError
from xllm_speech.features.images import load_pixels
from xllm_speech.models.checkpoints import load_asr
from xllm_speech.models.media import MediaEncoders, build_encoders
from xllm_speech.models.xllm_config import EncodersConfig, VisionConfig
from xllm_speech.records import ClipBatch, ConversationBatch, FbankBatch, Memory, PixelBatch


@pytest.fixture
def encoders(world: World) -> MediaEncoders:
    config = EncodersConfig(VisionConfig("vit", str(world.vision)), str(world.asr))
    return build_encoders(config, ["image", "video", "speech"])


def pictures(world: World, count: int) -> PixelBatch:
    x_BCHW = torch.stack([load_pixels(world.folder / f"images/{number}.png", 16) for number in range(count)])
    return PixelBatch(x_BCHW, torch.ones(count, dtype=torch.bool))


def test_each_kind_goes_through_its_encoder(world: World, encoders: MediaEncoders) -> None:
    torch.manual_seed(0)
    fbank = FbankBatch(torch.randn(2, 60, 80) + 12, torch.tensor([60, 41]))
    fbank.x_BTF[1, 41:] = 0
    clips = ClipBatch(pictures(world, 5), torch.tensor([2, 3]))
    batch = encoders.encode(ConversationBatch([], media={"image": pictures(world, 3), "video": clips, "speech": fbank}))
    assert not batch.media
    torch.testing.assert_close(batch.features["image"].x_BND, batch.features["video"].frames.x_BND[:3])
    assert batch.features["video"].counts_N.tolist() == [2, 3]
    own = load_asr(world.asr).model.find_units(fbank)[1]
    torch.testing.assert_close(batch.features["speech"].units_BUD, own.units_BUD)


def test_units_of_a_cache_pass_unchanged(encoders: MediaEncoders) -> None:
    units = Memory(torch.randn(2, 4, 16), torch.tensor([4, 2]))
    assert encoders.encode(ConversationBatch([], media={"speech": units})).features["speech"] is units


def test_they_stay_frozen(encoders: MediaEncoders) -> None:
    encoders.train()
    assert not any(module.training for module in encoders.modules())
    assert not any(parameter.requires_grad for parameter in encoders.parameters())


def test_an_absent_encoder_is_said(world: World) -> None:
    config = EncodersConfig(VisionConfig("vit", str(world.vision)), str(world.asr))
    encoders = build_encoders(config, ["image", "speech"], without=("asr",))
    with pytest.raises(ConfigError, match=r"speech: there is no encoder for it; set model.encoders.asr"):
        encoders.encode(ConversationBatch([], media={"speech": FbankBatch(torch.zeros(1, 9, 80), torch.tensor([9]))}))
    with pytest.raises(ConfigError, match="smell: no such kind"):
        encoders.encode_kind("smell", None)
