"""Frozen models of others at toy size, by chance, in the exact form that the recipes of the real corpora expect."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "unit" / "models" / "foreign"))

LLM_WIDTH = 32


def make_chatglm(folder: Path, texts: Iterable[str]) -> Path:
    """An official folder of two layers whose vocabulary holds these texts."""
    from xllm_speech.models.lm_config import LmModelConfig, build_lm, known_texts, load_vocabulary, make_vocabulary, save_lm

    folder.mkdir(parents=True)
    tokenizer = load_vocabulary(make_vocabulary(known_texts(list(texts))))
    torch.manual_seed(0)
    config = LmModelConfig(
        hidden_size=LLM_WIDTH, num_layers=2, num_attention_heads=4, inner_hidden_size=64, deepnorm_depth=2
    )
    glm = build_lm(config, tokenizer)
    save_lm(folder, glm.state_dict(), glm.config, tokenizer)
    return folder


def make_bert(folder: Path, texts: Iterable[str]) -> Path:
    """A BERT of one layer and width 16 with a vocabulary of single characters."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({char for text in texts for char in text if char.strip()})]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    BertModel(BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64,
    )).save_pretrained(folder)
    return folder


def make_clip(folder: Path) -> Path:
    """CLIP whose picture half has one block of width 16 and takes 16 x 16 pixels."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**part, "vocab_size": len(words), "max_position_embeddings": 24, **ends},
        vision_config={**part, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def make_eva(path: Path) -> Path:
    """eva_vit_g.pth for pictures of 8 x 8 pixels, and eva.json beside it with the number of heads."""
    from originals import EYE_HEADS, eva_weights

    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(eva_weights(""), path)
    (path.parent / "eva.json").write_text(json.dumps({"heads": EYE_HEADS}))
    return path


def make_blip2(path: Path) -> Path:
    """A second stage of LAVIS without its vision encoder; its projection is for an LLM of another width."""
    from originals import LLM, WIDTH, linear_weights, qformer_weights

    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": qformer_weights() | linear_weights("opt_proj", LLM, WIDTH)}, path)
    return path
