"""Frozen picture encoders: absent pictures, the small ViT saved and loaded, CLIP from a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.encoders.vision import VisionEncoder, build_vit, load_vision_encoder, save_vit
from xllm_speech.records import PixelBatch

SIZES = {"image_size": 32, "patch_size": 16, "width": 16, "depth": 2, "heads": 2}


def pixels(present: list[bool], side: int = 32) -> PixelBatch:
    present_B = torch.tensor(present)
    x_BCHW = torch.randn(len(present), 3, side, side, generator=torch.Generator().manual_seed(3))
    return PixelBatch(x_BCHW * present_B[:, None, None, None], present_B)


class Counter(nn.Module):
    """A network that notes how many pictures it was asked for; two features of three positions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x_BCHW))
        return x_BCHW.flatten(1)[:, :6].reshape(-1, 3, 2) + 1


def test_the_network_runs_on_pictures_that_are_there_only() -> None:
    network = Counter()
    batch = pixels([True, False, True, False], side=4)
    memory = VisionEncoder(network, 2, 4)(batch)
    assert network.calls == [2]
    assert memory.lens_B.tolist() == [3, 0, 3, 0]
    assert torch.equal(memory.x_BND[[1, 3]], torch.zeros(2, 3, 2))
    for row in (0, 2):
        assert torch.equal(memory.x_BND[row], batch.x_BCHW[row].flatten()[:6].reshape(3, 2) + 1)


def test_no_picture_at_all() -> None:
    network = Counter()
    memory = VisionEncoder(network, 2, 4)(pixels([False, False], side=4))
    assert network.calls == []
    assert memory.x_BND.shape == (2, 1, 2)
    assert memory.lens_B.tolist() == [0, 0]
    assert memory.lens_B.dtype == torch.int64


@pytest.mark.parametrize("present", [[True], [False]])
def test_pictures_of_another_size_are_told(present: list[bool]) -> None:
    with pytest.raises(ConfigError, match=r"16 x 16 pixels.*data\.image_size=32"):
        build_vit(**SIZES)(pixels(present, side=16))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_saved_and_loaded_gives_identical_features(tmp_path: Path, stem: str) -> None:
    torch.manual_seed(1)
    encoder = build_vit(**SIZES, stem=stem).eval()
    save_vit(encoder, tmp_path, **SIZES, stem=stem)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "vit.json").stat().st_mode
    torch.manual_seed(2)
    loaded = load_vision_encoder("vit", str(tmp_path))
    assert not any(module.training for module in loaded.modules())
    assert (loaded.width, loaded.image_size) == (16, 32)
    batch = pixels([True, True, False])
    memory = loaded(batch)
    assert memory.x_BND.shape == (3, 1 + 4, 16)
    assert torch.equal(memory.x_BND, encoder(batch).x_BND)
    state, again = encoder.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_a_folder_from_before_the_stems_is_a_patch_vit(tmp_path: Path) -> None:
    encoder = build_vit(**SIZES)
    save_vit(encoder, tmp_path, **SIZES)
    assert "stem" not in json.loads((tmp_path / "vit.json").read_text())
    batch = pixels([True])
    assert torch.equal(load_vision_encoder("vit", str(tmp_path))(batch).x_BND, encoder.eval()(batch).x_BND)


def test_stem_with_several_steps_per_patch() -> None:
    """A patch of 16 is 2 x 2 steps of the convolutions: what one patch shows reaches its own token (and near ones)."""
    encoder = build_vit(**{**SIZES, "depth": 1}, stem="conv").eval()
    embed = encoder.network.model.patch_embed  # type: ignore[union-attr]
    x_BCHW = torch.zeros(1, 3, 32, 32)
    base = embed(x_BCHW)  # type: ignore[operator]
    x_BCHW[:, :, 20:28, 20:28] = 1.0  # well inside the last of the four patches
    changed = (embed(x_BCHW) != base).any(-1)[0]  # type: ignore[operator]
    assert base.shape == (1, 4, 16)
    assert changed[3]
    assert not changed[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stem": "magic"}, "`magic` is not one of patch, conv"),
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"image_size": 40}, "image_size 40 is not a multiple of patch_size 16"),
        ({"patch_size": 4, "stem": "conv"}, "multiples of 8"),
        ({"depth": 0}, "vit.depth: 0 is not a positive whole number"),
        ({"depth": "2"}, "vit.depth: '2' is not a positive whole number"),
    ],
)
def test_sizes_that_do_not_fit(change: dict[str, int | str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_vit(**{**SIZES, **change})  # type: ignore[arg-type]


def test_wrong_kinds_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder; a model of kind `vit` is needed"):
        load_vision_encoder("vit", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"`dino` is not one of clip, eva, vit"):
        load_vision_encoder("dino", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"holds no vit\.json"):
        load_vision_encoder("vit", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"not a CLIP folder \(holds no config\.json\)"):
        load_vision_encoder("clip", str(tmp_path))


def test_a_damaged_vit_folder(tmp_path: Path) -> None:
    save_vit(build_vit(**SIZES), tmp_path, **SIZES)
    weights, described = tmp_path / "model.safetensors", tmp_path / "vit.json"
    whole, right = weights.read_bytes(), described.read_text()
    for text in ("{", "[1, 2]", '{"depth": 2}', right.replace('"depth": 2', '"depth": 3'), right.replace("16", "15"),
                 right.replace("depth", "deepness")):
        described.write_text(text)
        with pytest.raises(CheckpointError, match=f"^{tmp_path}: cannot be loaded"):
            load_vision_encoder("vit", str(tmp_path))
    described.write_text(right)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_vision_encoder("vit", str(tmp_path))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load_vision_encoder("vit", str(tmp_path))
    weights.write_bytes(whole)
    load_vision_encoder("vit", str(tmp_path))


@pytest.fixture
def clip_config() -> object:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )


def test_clip_gives_the_last_hidden_states(tmp_path: Path, clip_config: object) -> None:
    from transformers import CLIPVisionModel

    torch.manual_seed(4)
    model = CLIPVisionModel(clip_config).eval()
    model.save_pretrained(tmp_path)
    encoder = load_vision_encoder("clip", str(tmp_path))
    assert (encoder.width, encoder.image_size, encoder.training) == (16, 32, False)
    batch = pixels([True, False, True])
    with torch.no_grad():
        memory = encoder(batch)
        expected = model(pixel_values=batch.x_BCHW[[0, 2]]).last_hidden_state
    assert memory.lens_B.tolist() == [5, 0, 5]
    torch.testing.assert_close(memory.x_BND[[0, 2]], expected)


def test_the_vision_tower_of_a_whole_clip_in_half_precision(
    tmp_path: Path, clip_config: object, capfd: pytest.CaptureFixture[str]
) -> None:
    """The published folders hold both towers; what is stored in float16 is used in float32, like the pictures."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9,
        bos_token_id=1, eos_token_id=2,
    )
    torch.manual_seed(5)
    whole = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=clip_config.to_dict())).half().eval()  # type: ignore[attr-defined]
    whole.save_pretrained(tmp_path)
    capfd.readouterr()
    encoder = load_vision_encoder("clip", str(tmp_path))
    assert capfd.readouterr() == ("", "")
    batch = pixels([True])
    with torch.no_grad():
        found, expected = encoder(batch).x_BND, whole.float().vision_model(batch.x_BCHW).last_hidden_state
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_a_folder_that_is_not_clip_is_refused_not_filled_by_chance(tmp_path: Path, clip_config: object) -> None:
    from transformers import BertConfig, BertModel, CLIPVisionModel

    bert, clip = tmp_path / "bert", tmp_path / "clip"
    small = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(small).save_pretrained(bert)
    with pytest.raises(CheckpointError, match=r"not a CLIP folder .*model_type `bert`"):
        load_vision_encoder("clip", str(bert))
    CLIPVisionModel(clip_config).save_pretrained(clip)
    weights = clip / "model.safetensors"
    state = load_file(weights)
    lost = next(key for key in state if "fc1.weight" in key)
    save_file({key: value for key, value in state.items() if key != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights of CLIP are missing, among them .*fc1\.weight"):
        load_vision_encoder("clip", str(clip))
    save_file({**state, lost: state[lost][:-1].clone()}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights do not fit.*\[31, 16\] stored, \[32, 16\] described"):
        load_vision_encoder("clip", str(clip))
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be loaded as CLIP"):
        load_vision_encoder("clip", str(clip))
    (clip / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"not a CLIP folder .*not JSON"):
        load_vision_encoder("clip", str(clip))
