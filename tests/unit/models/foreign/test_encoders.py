"""EVA, CLIP, BERT and ESPnet's conformer, each against what its own library or plain functions compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from originals import EYE, EYE_HEADS, EYE_INNER, GRID, PATCH, chance, eva_weights, linear_weights, norm_weights
from safetensors.torch import save_file

from xllm_speech.base.errors import CheckpointError
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.encoders.vision import load_vision_encoder
from xllm_speech.interfaces.speech import SpeechInterface
from xllm_speech.models.checkpoints import load_foreign


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def test_eva_drops_the_last_block_and_what_follows(tmp_path: Path) -> None:
    weights = eva_weights("", blocks=40) | norm_weights("fc_norm", EYE) | linear_weights("head", 7, EYE)
    torch.save(weights | {"blocks.3.attn.k_bias": torch.zeros(EYE)}, tmp_path / "eva_vit_g.pth")
    state, report = load_foreign(tmp_path / "eva_vit_g.pth", layout="eva")
    assert {int(name.split(".")[2]) for name in state if ".blocks." in name} == set(range(39))
    assert "first 39 blocks" in report.ignored["blocks.39.attn.q_bias"]
    assert "ln_vision" in report.ignored["fc_norm.weight"]
    assert report.settings["encoders.vision.kind"] == "eva"
    assert torch.equal(state["vision.blocks.38.mlp.fc2.bias"], weights["blocks.38.mlp.fc2.bias"])


@torch.no_grad()
def test_eva_of_timm_and_of_our_own_names(tmp_path: Path) -> None:
    from timm.models.eva import Eva

    torch.manual_seed(0)
    whole = Eva(img_size=GRID * PATCH, patch_size=PATCH, embed_dim=EYE, depth=3, num_heads=EYE_HEADS, num_classes=4,
                mlp_ratio=EYE_INNER / EYE).eval()  # fmt: skip
    for parameter in whole.parameters():
        parameter.normal_(std=0.2)
    torch.save(whole.state_dict(), tmp_path / "eva.pth")
    (tmp_path / "eva.json").write_text(json.dumps({"heads": EYE_HEADS}))
    state, report = load_foreign(tmp_path / "eva.pth", layout="eva")
    assert {"fc_norm.weight", "head.bias"} <= set(report.ignored)
    picture = torch.randn(2, 3, GRID * PATCH, GRID * PATCH)
    expected = whole.forward_features(picture)  # its norm comes later, in the head
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for path in ("eva.pth", "model.safetensors", ""):
        encoder = load_vision_encoder("eva", str(tmp_path / path))
        assert (encoder.width, encoder.image_size) == (EYE, GRID * PATCH)
        torch.testing.assert_close(encoder.network(picture), expected)


def test_eva_that_is_none_or_another(tmp_path: Path) -> None:
    torch.save(eva_weights("") | {"norm_pre.weight": torch.ones(EYE)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"1 weights of .* are unknown to EVA ViT, first norm_pre\.weight"):
        load_foreign(tmp_path / "x.pth", layout="eva")
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"no EVA ViT \(cls_token is missing"):
        load_foreign(tmp_path / "x.pth", layout="eva")


@torch.no_grad()
def test_clip_folder_is_checked(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

    eye = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8,
                           patch_size=4)
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    whole = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=eye.to_dict()))
    whole.save_pretrained(tmp_path)
    state, report = load_foreign(tmp_path, layout="clip")
    fresh = CLIPVisionModel(eye)
    fresh.load_state_dict(part(state, "vision."))
    picture = torch.randn(1, 3, 8, 8)
    expected = whole.eval().vision_model(picture).last_hidden_state
    torch.testing.assert_close(fresh.eval()(picture).last_hidden_state, expected)
    assert any(name.startswith("text_model.") for name in report.ignored)
    assert report.settings["encoders.vision.kind"] == "clip"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="not a CLIP folder"):
        load_foreign(tmp_path, layout="clip")


@pytest.mark.parametrize("old", [False, True])
@torch.no_grad()
def test_bert_becomes_the_c_former(old: bool, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForPreTraining

    bert = BertForPreTraining(BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=9, initializer_range=0.4,
    )).eval()
    weights = {name: value.clone() for name, value in bert.state_dict().items()}
    if old:
        weights = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
                   for name, value in weights.items()}
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state, report = load_foreign(tmp_path, layout="bert")
    sizes = {name.split(".")[-1]: int(value) for name, value in report.settings.items()}
    interface = SpeechInterface(5, 6, heads=2, **sizes).eval()
    lost = interface.load_state_dict(state, strict=False)
    interface.load_state_dict(part(state, "speech."), strict=False)
    assert all(name.startswith(("projection.", "adapter.", "transformer.")) for name in lost.missing_keys)
    x = torch.randn(2, 7, 8)
    expected = bert.bert(inputs_embeds=x).last_hidden_state
    assert torch.equal(interface.transformer(inputs_embeds=x).last_hidden_state, expected)
    assert set(report.missing) == {"speech.projection.*", "speech.adapter.*"}
    assert "units do not need" in report.ignored["bert.pooler.dense.weight"]
    del weights["bert.encoder.layer.1.output.dense.bias"]
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.output\.dense\.bias is missing"):
        load_foreign(tmp_path, layout="bert")


@torch.no_grad()
def test_espnet_conformer_gives_its_own_numbers(tmp_path: Path) -> None:
    espnet = pytest.importorskip("espnet2.asr.encoder.conformer_encoder", reason="ESPnet is not installed (extra espnet)")
    torch.manual_seed(0)
    original = espnet.ConformerEncoder(
        16, output_size=16, attention_heads=2, linear_units=24, num_blocks=3, input_layer=None, macaron_style=True,
        rel_pos_type="latest", pos_enc_layer_type="rel_pos", selfattention_layer_type="rel_selfattn", cnn_module_kernel=5,
    ).eval()
    for name, tensor in original.state_dict().items():
        if "num_batches" not in name:
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else tensor + 0.3 * torch.randn_like(tensor))
    weights = {f"encoder.{name}": value for name, value in original.state_dict().items()}
    weights |= {"ctc.ctc_lo.weight": chance(3, 3), "normalize.mean": chance(4)}
    torch.save(weights, tmp_path / "valid.acc.best.pth")
    state, report = load_foreign(tmp_path / "valid.acc.best.pth", layout="espnet")
    settings = part(dict(report.settings), "encoder.")  # type: ignore[arg-type]
    assert settings == {"width": 16, "heads": 2, "feedforward": 24, "kernel": 5, "blocks": 3, "position": "relative",
                        "conv_norm": "batch", "final_norm": True}  # fmt: skip
    encoder = ConformerEncoder(bins=4, channels=2, pool_after=(1, 2), **settings).eval()
    lost = encoder.load_state_dict(part(state, "encoder."), strict=False)
    assert all(name.startswith("frontend.") for name in lost.missing_keys)
    assert lost.unexpected_keys == []
    x, lens = torch.randn(2, 9, 16), torch.tensor([9, 9])
    expected, _, _ = original(x, lens)
    y = x * 4  # the root of the width, see the report
    for block in encoder.blocks:
        y = block(y, torch.ones(2, 9, dtype=torch.bool), None)
    torch.testing.assert_close(encoder.norm(y), expected, atol=2e-5, rtol=0)
    assert set(report.missing) == {"encoder.frontend.*"}
    assert set(report.ignored) == {"ctc.ctc_lo.weight", "normalize.mean"}
    lost_key = "encoder.encoders.2.feed_forward_macaron.w_1.weight"
    torch.save({name: value for name, value in weights.items() if name != lost_key}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=f"{lost_key} is missing"):
        load_foreign(tmp_path / "y.pth", layout="espnet")
    with pytest.raises(CheckpointError, match=r"a folder; name the \.pth file"):
        load_foreign(tmp_path, layout="espnet")
