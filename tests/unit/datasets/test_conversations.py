"""Batches of conversations: what they hold, in which order, for whom; what is broken and what is refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import MonoCut, MultiCut
from lhotse.cut import Cut
from lhotse.utils import fastcopy
from PIL import Image

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.base.files import write_jsonl
from xllm_speech.datasets.conversation_config import ConversationDataConfig, ImageAugmentConfig, SourceConfig
from xllm_speech.datasets.conversation_sources import ConversationSource, conversation_of
from xllm_speech.datasets.conversations import ConversationData, share_out
from xllm_speech.datasets.lines import CutTable, IdIndex, PackedLines
from xllm_speech.datasets.media import build_readers
from xllm_speech.manifests.cuts import save_cuts
from xllm_speech.prompts.instructions import INSTRUCTIONS
from xllm_speech.records import ConversationBatch

MakeCuts = Callable[[int], list[Cut]]


def row(name: str, task: str = "text", question: str | list[dict[str, Any]] = "问", answer: str = "答") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "task": task, "messages": messages}


def texts(path: Path, count: int, name: str = "t", task: str = "text") -> SourceConfig:
    """`count` conversations, the n-th with a question of n characters."""
    write_jsonl(path, (row(f"{name}{number}", task, "问" * (number + 1)) for number in range(count)))
    return SourceConfig(str(path))


def data(*train: SourceConfig, kinds: tuple[str, ...] = (), **settings: Any) -> ConversationData:
    config = ConversationDataConfig(train=list(train), **settings)
    return ConversationData(config, build_readers(kinds, 16, 4, cuts=config.cuts, augment=config.image_augment))


def ids(batches: Iterator[ConversationBatch]) -> list[list[str]]:
    return [batch.ids for batch in batches]


def same(one: ConversationBatch, other: ConversationBatch) -> bool:
    pictures = [batch.media["image"].x_BCHW for batch in (one, other) if "image" in batch.media]
    equal = len(pictures) == 0 or (len(pictures) == 2 and torch.equal(*pictures))
    return equal and one.conversations == other.conversations and one.skipped == other.skipped


@pytest.fixture
def captions(tmp_path: Path) -> SourceConfig:
    """23 captions of pictures by relative path; one picture is broken."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for number in range(23):
        path = tmp_path / "pictures" / f"{number}.png"
        Image.linear_gradient("L").rotate(16 * number).resize((24, 24)).convert("RGB").save(path)
        rows.append(row(f"c{number}", "caption", [{"type": "image", "path": f"pictures/{number}.png"}], "字" * (number + 1)))
    (tmp_path / "pictures" / "7.png").write_bytes(b"broken")
    write_jsonl(tmp_path / "captions.jsonl.gz", rows)
    return SourceConfig(str(tmp_path / "captions.jsonl.gz"))


def test_an_epoch_is_a_pass_over_everything(captions: SourceConfig) -> None:
    made = data(captions, kinds=("image",), batch_size=4, pool_batches=2)
    assert made.counts == {f"train {captions.path} caption": 23}
    batches = list(made.train_batches(0))
    assert len(batches) == made.batches_per_epoch() == 6
    assert sorted(name for batch in batches for name in batch.ids) == sorted(f"c{n}" for n in range(23) if n != 7)
    skipped = [one for batch in batches for one in batch.skipped]
    assert [name for name, _ in skipped] == ["c7"]
    assert "7.png: unreadable picture" in skipped[0][1]
    for batch in batches:
        assert batch.media["image"].x_BCHW.shape == (len(batch.ids), 3, 16, 16)
        for conversation in batch.conversations:
            picture, instruction = conversation.messages[0].items
            assert Path(str(picture.path)).is_file()
            assert instruction.text in INSTRUCTIONS["caption"]


def test_batches_depend_on_epoch_and_seed_only(captions: SourceConfig) -> None:
    settings: dict[str, Any] = {
        "kinds": ("image",), "batch_size": 4, "pool_batches": 2, "image_augment": ImageAugmentConfig(0.5, 0.5),
    }
    batches = list(data(captions, **settings).train_batches(1))
    again = list(data(captions, **settings).train_batches(1))
    assert all(same(*pair) for pair in zip(batches, again, strict=True))
    assert ids(iter(batches)) != ids(data(captions, **settings).train_batches(2))
    assert ids(iter(batches)) != ids(data(captions, **settings, seed=1).train_batches(1))


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 5, 6])
def test_resumes_from_any_batch(captions: SourceConfig, skip: int) -> None:
    made = data(captions, kinds=("image",), batch_size=4, pool_batches=2, image_augment=ImageAugmentConfig(0.5, 0.5))
    whole, rest = list(made.train_batches(3)), list(made.train_batches(3, skip))
    assert len(rest) == 6 - skip
    assert all(same(*pair) for pair in zip(whole[skip:], rest, strict=True))


def test_loading_processes_change_nothing(captions: SourceConfig) -> None:
    settings: dict[str, Any] = {
        "kinds": ("image",), "batch_size": 4, "pool_batches": 2, "image_augment": ImageAugmentConfig(0.5, 0.5),
    }
    alone = list(data(captions, **settings).train_batches(1, 1))
    state = torch.get_rng_state()
    together = list(data(captions, **settings, num_workers=2).train_batches(1, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(same(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.parametrize(("batches", "world_size"), [(6, 2), (6, 3), (7, 2), (5, 4)])
def test_ranks_share_the_batches_of_one(tmp_path: Path, batches: int, world_size: int) -> None:
    made = data(texts(tmp_path / "t.jsonl", 50), batch_size=3, epoch_batches=batches, pool_batches=2)
    whole = ids(made.train_batches(0))
    assert len(whole) == batches
    each = [ids(made.train_batches(0, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(one) for one in each} == {batches // world_size} == {made.batches_per_epoch(world_size)}
    dealt = [batch for together in zip(*each, strict=True) for batch in together]
    assert dealt == whole[: len(dealt)]
    resumed = ids(made.train_batches(0, 1, world_size - 1, world_size))
    assert resumed == each[-1][1:]


def test_more_ranks_than_batches(tmp_path: Path) -> None:
    made = data(texts(tmp_path / "t.jsonl", 4), batch_size=2)
    each = [ids(made.train_batches(0, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(one) for one in each] == [1, 1, 1]
    assert each[0] == each[2]


def test_like_lengths_together(tmp_path: Path) -> None:
    made = data(texts(tmp_path / "t.jsonl", 64), batch_size=4, pool_batches=16)
    batches = ids(made.train_batches(0))
    spreads = [max(numbers) - min(numbers) for numbers in ([int(name[1:]) for name in batch] for batch in batches)]
    assert spreads == [3] * 16
    firsts = [int(batch[0][1:]) for batch in batches]
    assert firsts != sorted(firsts)


def test_shares_are_exact_and_passes_complete(tmp_path: Path) -> None:
    sources = [texts(tmp_path / f"{name}.jsonl", count, name) for name, count in (("a", 7), ("b", 100), ("c", 11))]
    for source, share in zip(sources, (1.0, 2.0, 0.5), strict=True):
        source.share = share
    made = data(*sources, batch_size=5, epoch_batches=7)
    assert made.epoch_counts == [10, 20, 5]
    epochs = [[name.partition("#")[0] for batch in ids(made.train_batches(epoch)) for name in batch] for epoch in range(5)]
    for drawn in epochs:
        assert Counter(name[0] for name in drawn) == {"a": 10, "b": 20, "c": 5}
        assert set(Counter(name for name in drawn if name[0] == "a").values()) <= {1, 2}
    # Over the epochs no source comes back to anything before all of it came: 50, 100 and 25 draws.
    total = Counter(name for drawn in epochs for name in drawn)
    assert {total[f"b{n}"] for n in range(100)} == {1}
    assert {total[f"a{n}"] for n in range(7)} == {7, 8}
    assert {total[f"c{n}"] for n in range(11)} == {2, 3}


def test_order_of_a_pass_differs_from_the_next(tmp_path: Path) -> None:
    made = data(texts(tmp_path / "t.jsonl", 40), batch_size=40, pool_batches=1)
    orders = [made.draw_epoch(epoch)[1].tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert list(range(40)) not in orders


@pytest.mark.parametrize(("count", "shares"), [
    (10, [1, 1, 1]), (7, [0.1, 0.2, 0.7]), (0, [1, 2]), (1, [1, 1]), (99, [1e-9, 1]),
])
def test_share_out(count: int, shares: list[float]) -> None:
    counts = share_out(count, shares)
    assert sum(counts) == count
    assert all(abs(found - count * share / sum(shares)) < 1 for found, share in zip(counts, shares, strict=True))


def test_an_id_that_comes_twice_in_a_batch(tmp_path: Path) -> None:
    made = data(texts(tmp_path / "t.jsonl", 3), batch_size=9, epoch_batches=1)
    (batch,) = made.train_batches(0)
    assert sorted(batch.ids) == ["t0", "t0#2", "t0#3", "t1", "t1#2", "t1#3", "t2", "t2#2", "t2#3"]


def test_tasks_of_a_source(tmp_path: Path) -> None:
    rows = [row(f"{task}{n}", task) for n in range(4) for task in ("vl", "text", "vsd")]
    write_jsonl(tmp_path / "t.jsonl", rows)
    path = str(tmp_path / "t.jsonl")
    made = data(SourceConfig(path, ["vl", "vsd"]), batch_size=8)
    assert made.counts == {f"train {path} vl": 4, f"train {path} vsd": 4}
    (batch,) = made.train_batches(0)
    assert {conversation.task for conversation in batch.conversations} == {"vl", "vsd"}
    with pytest.raises(DataError, match=r"t\.jsonl: holds no conversation of the tasks caption; there are text, vl, vsd"):
        data(SourceConfig(path, ["caption"]))


def test_cuts_become_conversations(tmp_path: Path, make_cuts: MakeCuts) -> None:
    cuts = make_cuts(6)
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    made = data(SourceConfig(str(tmp_path), ["asr"]), kinds=("speech",), batch_size=6)
    assert made.counts == {f"train {tmp_path / 'cuts.jsonl.gz'} asr": 6}
    (batch,) = made.train_batches(0)
    assert batch.skipped == []
    assert sorted(batch.ids) == sorted(f"{cut.id}-asr" for cut in cuts)
    assert batch.seconds == pytest.approx(sum(cut.duration for cut in cuts), abs=0.06)
    for conversation in batch.conversations:
        (cut,) = [cut for cut in cuts if f"{cut.id}-asr" == conversation.id]
        speech, instruction = conversation.messages[0].items
        assert (speech.type, speech.cut, speech.duration_sec) == ("speech", cut.id, cut.duration)
        assert Path(str(speech.path)).samefile(str(cut.recording.sources[0].source))
        assert instruction.text in INSTRUCTIONS["asr"]
        assert conversation.messages[1].items[0].text == cut.supervisions[0].text
    wordings = {batch.conversations[0].messages[0].items[1].text for epoch in range(12) for batch in made.train_batches(epoch)}
    assert len(wordings) > 1


def test_masr_takes_cuts_with_a_picture(tmp_path: Path, make_cuts: MakeCuts) -> None:
    save_cuts(make_cuts(6), tmp_path / "cuts.jsonl")
    made = data(SourceConfig(str(tmp_path / "cuts.jsonl"), ["masr"]), kinds=("speech", "image"), batch_size=6)
    (batch,) = made.train_batches(0)
    assert sorted(batch.ids) == ["u000-masr", "u002-masr", "u004-masr"]
    for conversation in batch.conversations:
        assert [item.type for item in conversation.messages[0].items] == ["image", "speech", "text"]
    assert batch.media.keys() == {"image", "speech"}
    save_cuts(make_cuts(6)[1::2], tmp_path / "blind.jsonl")
    with pytest.raises(DataError, match=r"blind\.jsonl: holds no conversation with a picture of the tasks masr"):
        data(SourceConfig(str(tmp_path / "blind.jsonl"), ["masr"]))


def test_captions_of_cuts_stand_before_the_instruction(tmp_path: Path, make_cuts: MakeCuts) -> None:
    cuts = make_cuts(6)
    told = {f"{cut.id}-asr": (cut.custom or {}).get("caption") for cut in cuts}
    assert None in told.values()
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    source = SourceConfig(str(tmp_path / "cuts.jsonl"), ["asr"], captions=True)
    (batch,) = data(source, kinds=("speech",), batch_size=6).train_batches(0)
    assert len(batch.conversations) == 6
    for conversation in batch.conversations:
        caption = told[conversation.id]
        lead, _, instruction = str(conversation.messages[0].items[-1].text).rpartition("\n")
        assert lead == (f"图片的内容：{caption}" if caption else "")
        assert instruction in INSTRUCTIONS["asr"]
        assert "图片的内容" not in str(conversation.messages[1].items[0].text)
    write_jsonl(tmp_path / "t.jsonl", [row("a", "vl")])
    with pytest.raises(ConfigError, match=r"t\.jsonl holds conversations, which bring all their words"):
        data(SourceConfig(str(tmp_path / "t.jsonl"), ["vl"], captions=True))


@pytest.mark.parametrize("tasks", [[], ["asr", "masr"], ["caption"]])
def test_cuts_need_one_task(tmp_path: Path, make_cuts: MakeCuts, tasks: list[str]) -> None:
    save_cuts(make_cuts(1), tmp_path / "cuts.jsonl")
    with pytest.raises(ConfigError, match=r"cuts\.jsonl holds cuts: name exactly one of asr, masr in its `tasks`"):
        data(SourceConfig(str(tmp_path / "cuts.jsonl"), tasks))


def test_cuts_that_are_not_whole_plain_files(make_cuts: MakeCuts) -> None:
    (cut,) = make_cuts(1)
    assert isinstance(cut, MonoCut)
    (item,) = conversation_of(cut, "asr").messages[0].items
    assert (item.path, item.offset_sec) == (str(cut.recording.sources[0].source), None)
    part = cut.truncate(offset=0.1, duration=0.1, preserve_id=True)
    (item,) = conversation_of(part, "asr").messages[0].items
    assert (item.cut, item.offset_sec, item.duration_sec) == (cut.id, 0.1, 0.1)
    command = fastcopy(cut, recording=fastcopy(cut.recording, sources=[fastcopy(cut.recording.sources[0], type="command")]))
    two = fastcopy(cut.recording, sources=[fastcopy(cut.recording.sources[0], channels=[0, 1])], channel_ids=[0, 1])
    both = MultiCut(cut.id, 0, cut.duration, [0, 1], supervisions=cut.supervisions, recording=two)
    for other in (command, cut.perturb_speed(0.9), fastcopy(cut, recording=two), both):
        (item,) = conversation_of(other, "asr").messages[0].items
        assert item.path is None


def test_bad_cuts_are_skipped(tmp_path: Path, make_cuts: MakeCuts) -> None:
    cuts = make_cuts(4)
    cuts[1].supervisions = [fastcopy(cuts[1].supervisions[0], text="，。")]
    lines = [json.dumps(cut.to_dict()) for cut in cuts]
    lines[2] = json.dumps({**json.loads(lines[2]), "duration": -1})
    (tmp_path / "cuts.jsonl").write_text("\n".join(lines))
    Path(str(cuts[3].recording.sources[0].source)).unlink()  # type: ignore[union-attr]
    made = data(SourceConfig(str(tmp_path / "cuts.jsonl"), ["asr"]), kinds=("speech",), batch_size=4)
    (batch,) = made.train_batches(0)
    assert batch.ids == ["u000-asr"]
    reasons = sorted(reason for _, reason in batch.skipped)
    assert reasons[0].endswith("cuts.jsonl:2: u001: no transcript")
    assert "cuts.jsonl:3:" in reasons[1]
    assert "duration -1" in reasons[1]
    assert "u003.wav: no such audio file" in reasons[2]


def test_bad_lines_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [json.dumps(row(f"t{n}")) for n in range(4)]
    lines[1:1] = ["{broken", json.dumps(row("x", "sing")), '{"task": "text"}']
    (tmp_path / "t.jsonl").write_text("\n\n".join(lines) + "\n")
    source = SourceConfig(str(tmp_path / "t.jsonl"))
    with caplog.at_level(logging.WARNING):
        made = data(source, batch_size=4, max_rejected=0.5)
    assert [record.message.partition("t.jsonl")[2] for record in caplog.records] == [
        ":3: not JSON (Expecting property name enclosed in double quotes at column 2)",
        ":5: task 'sing' is not one of asr, masr, caption, video, vl, vsd, text", ":7: no JSON object with an `id`",
    ]
    (batch,) = made.train_batches(0)
    assert sorted(batch.ids) == ["t0", "t1", "t2", "t3"]
    caplog.clear()
    ConversationData(made.config, {}, rank=1)
    assert not caplog.records
    with pytest.raises(DataError, match=r"t\.jsonl: 3 rejected \(bad-line 3\) of 7 items, more than the allowed share 0;"):
        data(source, max_rejected=0.0)
    (tmp_path / "t.jsonl").write_text("\n".join(["{"] * 30 + lines))
    with pytest.raises(DataError, match=r"33 rejected .* of 37 items, .*\(first: line 1: .*t\.jsonl:1: not JSON"):
        data(source)


def test_a_line_that_is_no_conversation_is_skipped(tmp_path: Path) -> None:
    good = row("good")
    rows = [good, {**good, "id": "bad", "messages": []}, row("odd", "vl", [{"type": "image"}]), row("mute", "vl", [
        {"type": "image", "path": "x.png"}])]
    write_jsonl(tmp_path / "t.jsonl", rows)
    (batch,) = data(SourceConfig(str(tmp_path / "t.jsonl")), batch_size=4).train_batches(0)
    assert batch.ids == ["good"]
    assert {Path(name).name for name, _ in batch.skipped} == {"t.jsonl:2", "t.jsonl:3", "t.jsonl:4"}
    reasons = " ".join(reason for _, reason in batch.skipped)
    for words in ("turns must alternate", "a image item needs `path`", "mute: message 0 has no text"):
        assert words in reasons


def test_an_id_twice_in_a_manifest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [row("a"), row("b"), row("c"), row("b")])
    with pytest.raises(DataError, match=r"t\.jsonl:4: id `b` was used in .*t\.jsonl:2 already"):
        data(SourceConfig(str(tmp_path / "t.jsonl")))


def test_dev_batches(tmp_path: Path, captions: SourceConfig) -> None:
    mixed = tmp_path / "dev" / "t.jsonl"
    write_jsonl(mixed, [row(f"{task}{n}", task) for n in range(10) for task in ("vl", "text")])
    other = tmp_path / "test" / "t.jsonl"
    write_jsonl(other, [row(f"o{n}") for n in range(3)])
    made = data(
        texts(tmp_path / "t.jsonl", 3), dev=[captions, SourceConfig(str(mixed)), SourceConfig(str(other))], kinds=("image",),
        batch_size=4, image_augment=ImageAugmentConfig(0.5, 0.5),
    )
    found = list(made.dev_batches(5))
    names = Counter(name for name, batch in found for _ in batch.ids)
    assert names == {"caption": 5, "vl": 5, "text_dev": 5, "text_test": 3}
    assert [len(batch.ids) for name, batch in found if name == "vl"] == [4, 1]
    assert [name for _, batch in found for name in batch.ids if name.startswith("vl")] == ["vl0", "vl2", "vl4", "vl6", "vl8"]
    plain = data(captions, dev=[captions], kinds=("image",), batch_size=4)
    shown = [batch for name, batch in found if name == "caption"]
    assert all(same(*pair) for pair in zip(shown, (batch for _, batch in plain.dev_batches(5)), strict=True))
    assert sum(len(batch.ids) + len(batch.skipped) for _, batch in plain.dev_batches(1000)) == 23
    twice = data(captions, dev=[captions, captions], kinds=("image",))
    assert {name for name, _ in twice.dev_batches(2)} == {f"caption_{tmp_path.name}", f"caption_{tmp_path.name}_2"}


def test_sources_without_an_item() -> None:
    with pytest.raises(ConfigError, match=r"data\.train is needed"):
        data()
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        data(SourceConfig("nowhere"))


@pytest.mark.parametrize(("settings", "words"), [
    ({"train": [{"path": "a", "taks": ["asr"]}]}, "taks"),
    ({"train": [{"path": "a", "tasks": ["ars"]}]}, "`ars` is not one of"),
    ({"train": [{"path": "a", "tasks": ["asr", "asr"]}]}, "name one twice"), ({"train": [{"tasks": ["asr"]}]}, "needs `path`"),
    ({"train": [{"path": "a", "share": 0}]}, "share 0.0 must be above 0"), ({"batch_size": 0}, "batch_size 0"),
    ({"epoch_batches": -1}, "epoch_batches -1"), ({"pool_batches": 0}, "pool_batches 0"),
    ({"num_workers": -1}, "num_workers -1"), ({"max_rejected": 2}, "max_rejected 2.0"),
    ({"channel": "left"}, "`left` is neither mix nor a number"),
])
def test_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_dict(settings, ConversationDataConfig)


def test_packed_lines(tmp_path: Path) -> None:
    lines = [f"第{number} line" + "x" * (number % 7) for number in range(1000)]
    (tmp_path / "lines.txt").write_text("\n\n".join(lines))
    packed = PackedLines(tmp_path / "lines.txt", lambda number, line: not line.startswith("第5"))
    kept = [(2 * number + 1, line) for number, line in enumerate(lines) if not line.startswith("第5")]
    assert len(packed) == len(kept)
    assert [packed[place] for place in range(len(packed))] == kept
    assert packed.where(3).endswith("lines.txt:7")
    empty = PackedLines(tmp_path / "lines.txt", lambda number, line: False)
    assert len(empty) == 0


def test_memory_of_packed_lines(tmp_path: Path) -> None:
    rows = [row(f"train-{number}", "vl", [{"type": "image", "path": f"data/corpus/images/train/{number}.png"},
                                          {"type": "text", "text": "图里有什么"}]) for number in range(5000)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    packed = PackedLines(tmp_path / "t.jsonl", lambda number, line: True)
    assert len(packed._data) < (tmp_path / "t.jsonl").stat().st_size / 5


def test_ids_of_many(tmp_path: Path) -> None:
    names = [f"id-{number}" for number in range(2000)]
    index = IdIndex([IdIndex.hash(name) for name in names])
    assert [index.find(name) for name in names] == list(range(2000))
    assert index.find("id-2000") is None
    assert index.first_repeat() is None
    assert IdIndex([]).find("a") is None
    assert IdIndex([IdIndex.hash(name) for name in ("a", "b", "a")]).first_repeat() == (0, 2)


def test_table_of_cuts(tmp_path: Path, make_cuts: MakeCuts) -> None:
    cuts = make_cuts(5)
    save_cuts(cuts[:3], tmp_path / "one.jsonl.gz")
    save_cuts([fastcopy(cuts[0], duration=0.2), *cuts[3:]], tmp_path / "two.jsonl")
    table = CutTable([tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl"])
    assert len(table) == 6
    assert [table.find(cut.id).duration for cut in cuts] == [cut.duration for cut in cuts]
    assert "u004" in table
    assert "u005" not in table
    with pytest.raises(DataError, match="no cut `u005` among 6"):
        table.find("u005")


def test_items_of_an_x_of_ones_own(tmp_path: Path) -> None:
    question = [{"type": "terminal", "text": "电量：80"}, {"type": "text", "text": "问"}]
    write_jsonl(tmp_path / "t.jsonl", [row("a", "vl", question)])
    source = SourceConfig(str(tmp_path / "t.jsonl"))
    (batch,) = data(source, kinds=("terminal",)).train_batches(0)
    assert batch.media["terminal"].texts == ["电量：80"]
    with pytest.raises(DataError, match=r"t\.jsonl:1: item type `terminal` is not one of"):
        ConversationSource(source).get(0)
