"""The frozen caption encoder, with a tiny BERT of chance weights and a vocabulary of a few characters."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizerFast, CLIPVisionConfig, CLIPVisionModel

from xllm_speech.base.errors import CheckpointError
from xllm_speech.encoders.caption import CaptionEncoder, load_caption_encoder

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"左上右下有红绿色的圆形旗子，"]
CAPTIONS = ["左上有红色的圆形，右下有绿色的旗子", "", "有旗子", "右上有圆形", "  "]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(6)
    out = tmp_path / "bert"
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )
    BertModel(config).save_pretrained(out)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(out)
    return out


@pytest.fixture
def encoder(folder: Path) -> CaptionEncoder:
    return load_caption_encoder(str(folder))


def test_hidden_states_of_the_tokens_with_cls_and_sep(folder: Path, encoder: CaptionEncoder) -> None:
    assert (encoder.width, encoder.longest, encoder.training) == (16, 24, False)
    ids = [VOCABULARY.index(token) for token in ["[CLS]", *"有旗子", "[SEP]"]]
    with torch.no_grad():
        expected = BertModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state
        memory = encoder(["有旗子"])
    assert memory.lens_B.tolist() == [5]
    torch.testing.assert_close(memory.x_BND, expected)


def test_lengths_and_absent_captions(encoder: CaptionEncoder) -> None:
    memory = encoder(CAPTIONS)
    assert memory.lens_B.tolist() == [len(CAPTIONS[0]) + 2, 0, 5, 7, 0]
    assert memory.x_BND.shape == (5, len(CAPTIONS[0]) + 2, 16)
    assert memory.x_BND[[1, 4]].abs().sum() == 0
    nobody = encoder(["", " "])
    assert nobody.x_BND.shape == (2, 1, 16)
    assert nobody.lens_B.tolist() == [0, 0]


def test_a_caption_is_the_same_alone_and_among_longer_ones(encoder: CaptionEncoder) -> None:
    with torch.no_grad():
        together = encoder(CAPTIONS)
        for row, caption in enumerate(CAPTIONS):
            alone, length = encoder([caption]), int(together.lens_B[row])
            assert int(alone.lens_B[0]) == length
            torch.testing.assert_close(together.x_BND[row, :length], alone.x_BND[0, :length], rtol=1e-5, atol=1e-5)


def test_padding_stands_on_the_right_whatever_the_folder_says(folder: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(folder)
    together = load_caption_encoder(str(folder))(CAPTIONS)
    alone = load_caption_encoder(str(folder))(["有旗子"])
    torch.testing.assert_close(together.x_BND[2, :5], alone.x_BND[0], rtol=1e-5, atol=1e-5)


def test_a_caption_that_is_too_long_is_cut_with_one_warning(
    encoder: CaptionEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="xllm_speech"):
        assert encoder(["红" * 22]).lens_B.tolist() == [24]
        assert caplog.records == []
        assert encoder(["红" * 30, "红"]).lens_B.tolist() == [24, 3]
        assert encoder(["红" * 40]).lens_B.tolist() == [24]
    assert [record.getMessage()[:36] for record in caplog.records] == ["a caption of 32 tokens is cut to 24,"]


def test_the_names_of_published_weights(folder: Path, encoder: CaptionEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    """Published BERT folders hold a pre-training head, and call the norms' weights gamma and beta."""
    weights = folder / "model.safetensors"
    renamed = {}
    for key, value in load_file(weights).items():
        if "LayerNorm" in key:
            key = key.replace(".weight", ".gamma").replace(".bias", ".beta")
        renamed[f"bert.{key}"] = value + 0.5 if "LayerNorm" in key else value
    renamed["cls.predictions.bias"] = torch.zeros(len(VOCABULARY))
    save_file(renamed, weights, metadata={"format": "pt"})
    capfd.readouterr()
    other = load_caption_encoder(str(folder))
    assert capfd.readouterr() == ("", "")
    norm = "embeddings.LayerNorm.weight"
    assert torch.equal(other.model.state_dict()[norm], encoder.model.state_dict()[norm] + 0.5)


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder; bert-base-chinese"):
        load_caption_encoder(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"not a BERT folder \(holds no config\.json\)"):
        load_caption_encoder(str(tmp_path / "empty"))
    small = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    CLIPVisionModel(small).save_pretrained(tmp_path / "clip")
    with pytest.raises(CheckpointError, match=r"not a BERT folder .*model_type `clip_vision_model`, not bert"):
        load_caption_encoder(str(tmp_path / "clip"))


def test_a_folder_without_its_vocabulary_or_with_that_of_another_model(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"holds no vocabulary \(tokenizer\.json or vocab\.txt\)"):
        load_caption_encoder(str(folder))
    vocab = tmp_path / "longer.txt"
    vocab.write_text("\n".join([*VOCABULARY, "猫", "狗"]), encoding="utf-8")
    BertTokenizerFast(str(vocab)).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"tokenizer has {len(VOCABULARY) + 2} tokens, BERT {len(VOCABULARY)}"):
        load_caption_encoder(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        load_caption_encoder(str(folder))


def test_a_bert_without_all_its_weights_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    state = {key: value for key, value in load_file(weights).items() if "layer.1.output.dense" not in key}
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"2 weights of BERT are missing, among them .*layer\.1\.output\.dense"):
        load_caption_encoder(str(folder))
