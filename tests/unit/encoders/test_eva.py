"""EVA ViT: which weights are taken from which layout, sizes, heads, refusals (its numbers: tests of models.foreign)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.encoders.eva import EvaSizes, build_eva, find_prefix, load_eva, pick_eva, read_heads, read_sizes
from xllm_speech.encoders.vision import load_vision_encoder
from xllm_speech.records import PixelBatch

SIZES = EvaSizes(image_size=8, patch_size=4, width=32, depth=2, feedforward=141)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(value) * 0.3 for name, value in build_eva(SIZES).state_dict().items()}


def test_the_released_network_has_the_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        network = build_eva(EvaSizes(224, 14, 1408, 39, 6144))
    assert len(network.blocks) == 39
    assert network.pos_embed.shape == (1, 257, 1408)
    assert network.blocks[0].mlp.fc1.weight.shape == (6144, 1408)
    assert network.blocks[0].attn.num_heads == 16
    assert isinstance(network.norm, torch.nn.Identity)
    assert not any(name.startswith(("norm.", "fc_norm.", "head.")) for name in network.state_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) == 985_894_528


@pytest.mark.parametrize("prefix", ["", "visual.", "visual.trunk.", "visual_encoder.", "vision."])
def test_every_layout_is_found(prefix: str, state: dict[str, torch.Tensor]) -> None:
    stored = {prefix + name: value for name, value in state.items()}
    others = {} if not prefix else {"logit_scale": torch.ones(1), "text.weight": torch.ones(1)}
    assert find_prefix(stored | others) == prefix
    weights = pick_eva(stored | others)
    assert weights.state.keys() == state.keys()
    assert weights.used == {prefix + name: [name] for name in state}
    assert read_sizes(weights.state, "x") == SIZES


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_encoder_of_a_file_is_frozen_whole_and_in_float32(kind: torch.dtype, state: dict, tmp_path: Path) -> None:
    torch.save({name: value.to(kind) for name, value in state.items()}, tmp_path / "eva.pth")
    (tmp_path / "eva.json").write_text('{"heads": 16}')
    encoder = load_vision_encoder("eva", str(tmp_path / "eva.pth"))
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}
    assert not any(tensor.is_meta for tensor in [*encoder.parameters(), *encoder.buffers()])
    oracle = build_eva(SIZES).eval()
    oracle.load_state_dict({name: value.to(kind) for name, value in state.items()})
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        memory = encoder(PixelBatch(x, torch.tensor([True, True])))
        torch.testing.assert_close(memory.x_BND, oracle.forward_features(x))
    assert memory.lens_B.tolist() == [5, 5]


def test_heads_come_from_the_folder(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file)
    assert read_heads(tmp_path, 1408) == 16
    assert read_heads(tmp_path, 32) is None
    with pytest.raises(CheckpointError, match=r'nothing tells the number of heads; write it as {"heads": n} into eva\.json'):
        load_eva(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"num_attention_heads": 4}}))
    assert read_heads(tmp_path, 1408) == 4
    assert read_heads(file, 1408) == 16
    (tmp_path / "eva.json").write_text(json.dumps({"heads": 8}))
    for path in (tmp_path, file):
        assert read_heads(path, 1408) == 8
        network, sizes = load_eva(path)
        assert network.blocks[0].attn.num_heads == 8  # type: ignore[union-attr, index]
        assert sizes == SIZES
    (tmp_path / "eva.json").write_text(json.dumps({"heads": 5}))
    with pytest.raises(CheckpointError, match=r"a width of 32 cannot be shared by 5 heads; correct eva\.json"):
        load_eva(tmp_path)
    (tmp_path / "eva.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"eva\.json: not JSON"):
        load_eva(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"blocks.1.mlp.fc2.bias": None}, r"1 weights of the vision encoder are missing, first blocks\.1\.mlp\.fc2\.bias"),
    ({"blocks.0.attn.norm.weight": torch.ones(32)}, r"1 weights .* unknown to EVA ViT, first blocks\.0\.attn\.norm\.weight"),
    ({"blocks.1.norm1.weight": torch.ones(3)}, r"blocks\.1\.norm1\.weight is \[3\], its network needs \[32\]"),
    ({"cls_token": torch.ones(32)}, r"cls_token must be a tensor of 3 dimensions, found \[32\]"),
    ({"patch_embed.proj.weight": None}, r"patch_embed\.proj\.weight must be a tensor of 4 dimensions, found none"),
    ({"pos_embed": torch.ones(1, 4, 32)}, "pos_embed has 4 positions, not a square and one"),
    ({"cls_token": None}, r"holds no EVA ViT \(no cls_token"),
])  # fmt: skip
def test_what_is_wrong_is_named(change: dict, message: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    changed = {name: value for name, value in {**state, **change}.items() if value is not None}
    torch.save(changed, tmp_path / "eva.pth")
    with pytest.raises(CheckpointError, match=message):
        load_vision_encoder("eva", str(tmp_path / "eva.pth"))


def test_nothing_there_and_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_vision_encoder("eva", str(tmp_path / "eva.pth"))
    with pytest.raises(ConfigError, match="`dino` is not one of clip, eva, vit"):
        load_vision_encoder("dino", str(tmp_path))
