"""Instruction data: counts, seeds, and where each example came from."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from lhotse.utils import fastcopy

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.manifests.conversations import read_conversations, write_conversations
from xllm_speech.manifests.cuts import make_recording, save_cuts
from xllm_speech.manifests.instructions import KINDS, Source, prepare_instructions
from xllm_speech.records.manifest import Conversation, ConversationItem, Message


def conversation(name: str, task: str) -> Conversation:
    medium = ConversationItem("video" if task == "video" else "image", path="a.jpg")
    return Conversation(name, task, (Message("user", (medium,)), Message("assistant", (ConversationItem("text", text="好"),))))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    from lhotse import MonoCut, SupervisionSegment

    found = {}
    for kind, task in (("vl", "vl"), ("video", "video"), ("vsd", "vsd")):
        items = [conversation(f"{kind}-{n}", task) for n in range(30)] + [conversation(f"other-{kind}", "text")]
        write_conversations(tmp_path / f"{kind}.jsonl.gz", items)
        found[kind] = Source(tmp_path / f"{kind}.jsonl.gz", 10)
    recording = make_recording("r", corpora.wav(tmp_path / "r.wav", 2.0))
    cuts = []
    for n in range(40):
        words = SupervisionSegment(f"u{n}", "r", 0, 1.0, text="" if n == 39 else f"第{n}句")
        custom = {"image": f"{n}.jpg"} if n < 25 else None
        cuts.append(MonoCut(f"u{n}", 0.5, 1.0, 0, recording=recording, supervisions=[words], custom=custom))
    cuts.append(fastcopy(cuts[0], id="whole", start=0, duration=2.0))
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    return {**found, "asr": Source(tmp_path / "cuts.jsonl.gz", 40), "masr": Source(tmp_path / "cuts.jsonl.gz", 12)}


def read(path: Path) -> list[Conversation]:
    return list(read_conversations(path / "conversations.jsonl.gz"))


def test_counts_seeds_and_mixture(sources: dict[str, Source], tmp_path: Path) -> None:
    counts = prepare_instructions(sources, tmp_path / "one", seed=1)
    assert counts == {"vl": 10, "asr": 40, "video": 10, "vsd": 10, "masr": 12, "conversations": 82}
    one = read(tmp_path / "one")
    assert Counter(item.task for item in one) == {"vl": 10, "asr": 40, "video": 10, "vsd": 10, "masr": 12}
    assert len({item.task for item in one[:20]}) >= 3  # mixed
    prepare_instructions(sources, tmp_path / "same", seed=1)
    assert (tmp_path / "same/conversations.jsonl.gz").read_bytes() == (tmp_path / "one/conversations.jsonl.gz").read_bytes()
    prepare_instructions(sources, tmp_path / "two", seed=2)
    assert {item.id for item in read(tmp_path / "two")} != {item.id for item in one}
    # A larger count keeps what the smaller one had, and the order of the manifest does not matter.
    more = Source(sources["vl"].path, 20)
    prepare_instructions({"vl": more}, tmp_path / "more", seed=1)
    assert {item.id for item in one if item.task == "vl"} < {item.id for item in read(tmp_path / "more")}
    items = list(read_conversations(sources["vl"].path))
    write_conversations(tmp_path / "turned.jsonl.gz", reversed(items))
    prepare_instructions({"vl": Source(tmp_path / "turned.jsonl.gz", 20)}, tmp_path / "turned", seed=1)
    assert read(tmp_path / "turned") == read(tmp_path / "more")
    taken = json.loads((tmp_path / "one/statistics.json").read_text())["taken"]
    assert taken["vl"] == {"from": str(sources["vl"].path), "of": 30, "wanted": 10, "taken": 10}


def test_speech_names_its_part_of_the_file(sources: dict[str, Source], tmp_path: Path) -> None:
    prepare_instructions({kind: sources[kind] for kind in ("asr", "masr")}, tmp_path / "out")
    found = {item.id: item for item in read(tmp_path / "out")}
    part = found["asr-u7"].messages[0].items
    assert (len(part), part[0].offset_sec, part[0].duration_sec) == (1, 0.5, 1.0)
    whole = found["asr-whole"].messages[0].items[0]
    assert (whole.path, whole.offset_sec) == (str(tmp_path / "r.wav"), None)
    assert "asr-u39" not in found  # it has no words
    pictured = next(item for item in found.values() if item.task == "masr")
    assert [item.type for item in pictured.messages[0].items] == ["image", "speech"]
    assert found["asr-u7"].messages[1].items[0].text == "第7句"


def test_the_papers_counts() -> None:
    assert {kind: value.count for kind, value in KINDS.items()} == {
        "vl": 3500, "asr": 2000, "video": 1000, "vsd": 1000, "masr": 2000,
    }  # fmt: skip


def test_too_few_are_said(sources: dict[str, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        counts = prepare_instructions({"vl": Source(sources["vl"].path, 3500)}, tmp_path / "out")
    assert counts["vl"] == 30
    assert "30 of the 3500 wanted for `vl`; all are taken" in caplog.text


def test_mistakes(sources: dict[str, Source], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest to choose from"):
        prepare_instructions({}, tmp_path / "out")
    with pytest.raises(DataError, match="kind `audio` is not one of vl"):
        prepare_instructions({"audio": sources["vl"]}, tmp_path / "out")
    with pytest.raises(DataError, match=r"nothing of the kind `video` in it \(conversations of task video\)"):
        prepare_instructions({"video": sources["vl"]}, tmp_path / "out")
    write_conversations(tmp_path / "twice.jsonl", [conversation("vl-3", "video")])
    both = {"vl": Source(sources["vl"].path, 30), "video": Source(tmp_path / "twice.jsonl", 1)}
    with pytest.raises(DataError, match="the id vl-3 stands in two"):
        prepare_instructions(both, tmp_path / "out")
    assert not (tmp_path / "out").exists()
