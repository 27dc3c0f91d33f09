"""Similarity of pictures and texts: both kinds of CLIP from local folders, kills, unreadable pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests import corpora
from xllm_speech.base.errors import CheckpointError, DataError
from xllm_speech.bin.main import main
from xllm_speech.datasets.similarity import ClipScorer, score_manifest
from xllm_speech.manifests.conversations import write_conversations
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

LETTERS = "abcdefghijklmnopqrstuvwxyz猫狗"


@pytest.fixture(scope="module", params=["clip", "chinese_clip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of either kind, saved as the published ones are."""
    from transformers import (
        BertTokenizer,
        ChineseCLIPConfig,
        ChineseCLIPImageProcessor,
        ChineseCLIPModel,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPTokenizer,
    )

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**size, "image_size": 32, "patch_size": 16}
    if request.param == "clip":
        known = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
        vocab = {token: place for place, token in enumerate(known)}
        CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(path)
        words = {**size, "vocab_size": len(vocab), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
        CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=8)).save_pretrained(path)
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(path)
    else:
        tokens = {token: place for place, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS])}
        BertTokenizer(vocab=tokens).save_pretrained(path)
        words = {**size, "vocab_size": len(tokens), "max_position_embeddings": 16}
        ChineseCLIPModel(ChineseCLIPConfig(text_config=words, vision_config=vision, projection_dim=8)).save_pretrained(path)
        ChineseCLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(path)
    return path


def manifest(top: Path, count: int = 7) -> Path:
    items = []
    for number in range(count):
        path = corpora.picture(top / f"{number}.png", seed=number)
        asked = Message("user", (ConversationItem("image", path=str(path)),))
        reply = Message("assistant", (ConversationItem("text", text="猫" * (number + 1)),))
        items.append(Conversation(f"pair-{number}", "caption", (asked, reply)))
    write_conversations(top / "m.jsonl.gz", items)
    return top / "m.jsonl.gz"


def read(path: Path) -> dict[str, float]:
    return {name: float(score) for name, score in (line.split("\t") for line in path.read_text().splitlines())}


def test_scores_by_a_local_model(folder: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, count=20)
    (tmp_path / "3.png").write_text("no picture")
    argv = ["similarity", "--input", path, "--clip", folder, "--out", tmp_path / "scores.tsv", "--batch-size", 8]
    assert main(["prepare", *map(str, argv)]) == 0
    found = read(tmp_path / "scores.tsv")
    assert list(found) == [f"pair-{number}" for number in range(20)]
    assert [name for name, score in found.items() if math.isnan(score)] == ["pair-3"]
    assert all(-1 <= score <= 1 for name, score in found.items() if name != "pair-3")
    scorer = ClipScorer(folder)
    alone = scorer.score([str(tmp_path / "5.png")], ["猫" * 6])[0]
    assert alone == pytest.approx(found["pair-5"], abs=1e-4)  # whatever else is in the batch
    assert alone != pytest.approx(scorer.score([str(tmp_path / "6.png")], ["dog"])[0], abs=1e-4)


class Counting:
    """A scorer that counts, and may be interrupted."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at

    def score(self, paths: Sequence[str], texts: Sequence[str]) -> list[float]:
        if self.stop_at is not None and len(self.seen) >= self.stop_at:
            raise KeyboardInterrupt
        self.seen += paths
        return [len(text) / 10 for text in texts]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path, out = manifest(tmp_path), tmp_path / "scores.tsv"
    with pytest.raises(KeyboardInterrupt):
        score_manifest(path, out, Counting(stop_at=4), batch_size=2)  # type: ignore[arg-type]
    assert not out.exists()
    with open(tmp_path / ".scores.tsv.part", "a") as stream:
        stream.write("pair-4\t0.")  # killed while it wrote
    again = Counting()
    assert score_manifest(path, out, again, batch_size=2) == {"scores": 7, "unreadable": 0, "mean": 0.4}  # type: ignore[arg-type]
    assert len(again.seen) == 3
    assert read(out) == {f"pair-{number}": pytest.approx((number + 1) / 10) for number in range(7)}


def test_scores_of_another_manifest_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / ".scores.tsv.part").write_text("pair-0\t0.5\nother-1\t0.5\n")
    scorer = Counting()
    score_manifest(manifest(tmp_path), tmp_path / "scores.tsv", scorer)  # type: ignore[arg-type]
    assert len(scorer.seen) == 6
    write_conversations(tmp_path / "none.jsonl", [])
    with pytest.raises(DataError, match="no conversation about a picture"):
        score_manifest(tmp_path / "none.jsonl", tmp_path / "x.tsv", scorer)  # type: ignore[arg-type]


def test_folders_that_are_no_clip(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a CLIP model"):
        ClipScorer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="type `bert`, expected clip or chinese_clip"):
        ClipScorer(tmp_path)
