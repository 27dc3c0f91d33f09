from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from lhotse.cut import Cut

from xllm_speech.datasets.asr import AsrDataset
from xllm_speech.features.audio import load_samples
from xllm_speech.features.fbank import compute_fbank
from xllm_speech.features.store import compute_features
from xllm_speech.manifests.cuts import load_cuts
from xllm_speech.text.tokens import TokenTable

MakeCuts = Callable[[int], list[Cut]]


@pytest.fixture
def table() -> TokenTable:
    return TokenTable.train(["红色的旗子", "蓝色的棋子", "a green bell", "三个方块", "what colour", "圆在哪里"])


def test_a_batch_holds_what_its_cuts_say(make_cuts: MakeCuts, table: TokenTable) -> None:
    cuts = make_cuts(6)
    batch = AsrDataset(table, image_size=16)[CutSet(cuts)]
    assert batch.ids == [cut.id for cut in cuts]
    assert batch.seconds == pytest.approx(sum(cut.duration for cut in cuts))
    assert batch.tokens_BL is not None
    assert batch.token_lens_B is not None
    assert batch.pixels is not None
    for place, cut in enumerate(cuts):
        feats_TF = compute_fbank(load_samples(cut))
        size = int(batch.fbank.lens_B[place])
        assert torch.equal(batch.fbank.x_BTF[place, :size], feats_TF)
        assert not batch.fbank.x_BTF[place, size:].any()
        tokens = batch.tokens_BL[place].tolist()
        count = int(batch.token_lens_B[place])
        assert table.decode(tokens[:count]) == cut.supervisions[0].text == batch.texts[place]
        assert tokens[count:] == [0] * (len(tokens) - count)
        assert bool(batch.pixels.present_B[place]) == (place % 2 == 0)
        assert bool(batch.pixels.x_BCHW[place].any()) == (place % 2 == 0)
        assert batch.captions[place] == (f"图{place}" if place % 2 == 0 else "")
    assert batch.skipped == []


def test_stored_features_give_the_same_batch(make_cuts: MakeCuts, table: TokenTable, tmp_path: Path) -> None:
    cuts = make_cuts(5)
    compute_features(cuts, tmp_path / "dump")
    ours = AsrDataset(table)[CutSet(list(load_cuts(tmp_path / "dump" / "cuts.jsonl.gz")))]
    expected = AsrDataset(table)[CutSet(cuts)]
    assert torch.equal(ours.fbank.x_BTF, expected.fbank.x_BTF)
    assert torch.equal(ours.fbank.lens_B, expected.fbank.lens_B)
    assert ours.ids == expected.ids


def test_bad_items_are_named_and_cost_only_themselves(make_cuts: MakeCuts, table: TokenTable) -> None:
    cuts = make_cuts(7)
    Path(cuts[0].recording.sources[0].source).write_bytes(b"garbage")
    Path(cuts[1].recording.sources[0].source).unlink()
    cuts[2].supervisions[0].text = "！？"
    cuts[3].supervisions = []
    Path(cuts[4].custom["image"]).write_bytes(b"garbage")
    cuts[5] = cuts[5].truncate(duration=0.004).with_id("u005")
    batch = AsrDataset(table, image_size=16)[CutSet(cuts)]
    assert batch.ids == ["u004", "u006"]
    assert [name for name, _ in batch.skipped] == ["u000", "u001", "u002", "u003", "u005", "u004"]
    reasons = dict(batch.skipped)
    assert "unreadable" in reasons["u000"]
    assert "no such" in reasons["u001"]
    assert "！？" in reasons["u002"]
    assert "no transcript" in reasons["u003"]
    assert "without its picture" in reasons["u004"]
    assert "too short" in reasons["u005"]
    assert batch.pixels is not None
    assert batch.pixels.present_B.tolist() == [False, True]
    moved = batch.to("cpu")
    assert moved.skipped == batch.skipped


def test_a_batch_of_only_bad_items_has_no_ids(make_cuts: MakeCuts, table: TokenTable) -> None:
    cuts = make_cuts(2)
    for cut in cuts:
        Path(cut.recording.sources[0].source).unlink()
    batch = AsrDataset(table, image_size=16)[CutSet(cuts)]
    assert batch.ids == []
    assert batch.fbank.x_BTF.shape == (0, 0, 80)
    assert batch.tokens_BL is not None
    assert batch.token_lens_B is not None
    assert batch.tokens_BL.shape == (0, 0)
    assert int(batch.token_lens_B.sum()) == 0  # what the training loop counts
    assert len(batch.skipped) == 2


def test_without_a_table_transcripts_are_optional(make_cuts: MakeCuts) -> None:
    cuts = make_cuts(2)
    cuts[0].supervisions = []
    batch = AsrDataset(None)[CutSet(cuts)]
    assert batch.ids == ["u000", "u001"]
    assert batch.tokens_BL is None
    assert batch.texts == ["", "蓝色的棋子"]


def test_pictures_and_captions_by_share_and_epoch(make_cuts: MakeCuts, table: TokenTable) -> None:
    cuts = CutSet(make_cuts(40))
    drawn = []
    for epoch in (0, 1):
        batch = AsrDataset(table, image_size=16, image_share=0.5, caption_share=0.5, seed=3, epoch=epoch)[cuts]
        again = AsrDataset(table, image_size=16, image_share=0.5, caption_share=0.5, seed=3, epoch=epoch)[cuts]
        assert batch.pixels is not None
        assert again.pixels is not None
        assert torch.equal(batch.pixels.present_B, again.pixels.present_B)
        assert batch.captions == again.captions
        drawn.append((batch.pixels.present_B.tolist(), batch.captions))
        assert 4 <= int(batch.pixels.present_B.sum()) <= 16
        assert 4 <= sum(map(bool, batch.captions)) <= 16
    assert drawn[0] != drawn[1]
    none = AsrDataset(table, image_size=16, image_share=0.0, caption_share=0.0)[cuts]
    assert none.pixels is None
    assert none.captions == []
