"""VSDial-CN put together from its parts: sets, shared recordings, what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.cuts import load_cuts, utterance_of
from xllm_speech.manifests.vsdial_cn import VsdialSettings, prepare_vsdial_cn

CHINESE = {
    "is it sunny": "天晴吗", "Is it sunny?": "天晴吗？", "how many people": "有几个人", "what color": "什么颜色", "yes": "是的",
    "2": "两个", "no": "不是", "red": "红色", "picture 9": "第九张图", "picture 25": "第二十五张图", "picture 77": "一张图",
}  # fmt: skip


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "table.jsonl", ({"source": source, "target": target} for source, target in CHINESE.items()))
    rows = []
    for place, text in enumerate(("天晴吗", "有几个人", "什么颜色")):
        corpora.wav(tmp_path / "speech" / "wav" / f"q{place}.wav", 0.2 + 0.1 * place)
        rows.append({"text": text, "path": f"wav/q{place}.wav", "speaker": f"s{place}"})
    write_jsonl(tmp_path / "speech" / "speech.jsonl", rows)
    return tmp_path


def prepare(top: Path, files: list[Path], **more: Any) -> dict[str, float]:
    settings = VsdialSettings(str(top / "table.jsonl"), more.pop("test_count", 2000), more.pop("seed", 1))
    values: dict[str, Any] = {"max_rejected": 0.0, **more}
    return prepare_vsdial_cn(settings, files, top / "speech", [top / "images"], top / "out", **values)


def test_train_with_one_recording_per_question(parts: Path) -> None:
    counts = prepare(parts, [corpora.visdial(parts)])
    assert (counts["train.cuts"], counts["train.recordings"], counts["train.left_out"]) == (8, 3, 4)
    assert counts["train.conversations"] == 2 + 8 + 8
    cuts = {cut.id: cut for cut in load_cuts(parts / "out/train/cuts.jsonl.gz")}
    one = utterance_of(cuts["train-25-1"])
    assert (one.text, one.speaker, one.caption) == ("天晴吗？", "s0", "第二十五张图")
    assert (one.dialog_id, one.round) == ("train-25", 1)
    assert Path(str(one.image)).name == "COCO_train2014_000000000025.jpg"
    assert cuts["train-25-1"].custom["answer"] == "两个"
    assert cuts["train-9-0"].recording.sources[0].source == cuts["train-25-1"].recording.sources[0].source
    found = {item.id: item for item in read_conversations(parts / "out/train/conversations.jsonl.gz")}
    spoken = found["train-9-1-vsd"]
    assert (spoken.task, [item.type for item in spoken.messages[0].items]) == ("vsd", ["image", "speech"])
    assert spoken.messages[1].items[0].text == "两个"
    assert found["train-9-1-vl"].messages[0].items[1].text == "有几个人"
    assert found["train-9-0-caption"].messages[1].items[0].text == "第九张图"
    assert "train-9-1-caption" not in found


def test_test_sets(parts: Path) -> None:
    path = corpora.visdial(parts, "test", ids=(9, 25, 77))
    art = [{"image_id": 77, "question": "什么颜色"}, {"image_id": 77, "question": "有几个人", "answer": "三个"}]
    write_jsonl(parts / "art.jsonl", art)
    counts = prepare(parts, [path], test_count=4, art=parts / "art.jsonl")
    assert (counts["test-orig.cuts"], counts["test-art.cuts"]) == (4, 2)
    chosen = [cut.id for cut in load_cuts(parts / "out/test-orig/cuts.jsonl.gz")]
    assert all("answer" in cut.custom for cut in load_cuts(parts / "out/test-orig/cuts.jsonl.gz"))
    assert [cut.id for cut in load_cuts(parts / "out/test-art/cuts.jsonl.gz")] == ["art-77-0", "art-77-1"]
    prepare(parts, [path], test_count=4)
    assert [cut.id for cut in load_cuts(parts / "out/test-orig/cuts.jsonl.gz")] == chosen
    others = []
    for seed in range(2, 8):
        prepare(parts, [path], test_count=4, seed=seed)
        others.append([cut.id for cut in load_cuts(parts / "out/test-orig/cuts.jsonl.gz")])
    assert any(other != chosen for other in others)


def test_what_is_missing_is_named(parts: Path) -> None:
    path = corpora.visdial(parts, ids=(9, 25, 30))
    write_jsonl(parts / "table.jsonl", ({"source": s, "target": t} for s, t in CHINESE.items() if s not in ("2", "picture 30")))
    rows = [row for _, row in read_jsonl(parts / "speech/speech.jsonl")]
    write_jsonl(parts / "speech/speech.jsonl", rows[:2])
    (parts / "images" / "COCO_train2014_000000000025.jpg").unlink()
    (parts / "speech/wav/q1.wav").write_bytes(b"no")
    with pytest.raises(DataError, match="of 12 items"):
        prepare(parts, [path])
    with pytest.raises(DataError, match=r"expected|no such file"):
        prepare_vsdial_cn(VsdialSettings(), [path], parts / "none", [parts / "images"], parts / "out")
    prepare(parts, [path], max_rejected=1.0)
    kinds = {row["id"]: row["kind"] for _, row in read_jsonl(parts / "out/train/rejected.jsonl")}
    assert kinds["train-9-1"] == "no-translation"
    assert kinds["train-30-0"] == "no-translation"
    assert kinds["train-9-3"] == "no-speech"
    assert kinds["train-25-3"] == "picture-missing"
    statistics = json.loads((parts / "out/train/statistics.json").read_text())["statistics"]
    assert statistics["cuts"] + statistics["rejected"] == 12


@pytest.mark.parametrize(("name", "text"), [("table.jsonl", '{"a": 1}'), ("speech/speech.jsonl", '{"text": "x"}')])
def test_broken_tables(parts: Path, name: str, text: str) -> None:
    (parts / name).write_text(text + "\n")
    with pytest.raises(DataError, match=rf"{name}:1: no `"):
        prepare(parts, [corpora.visdial(parts)])


def test_where_everything_comes_from_is_told(parts: Path) -> None:
    speech = parts / "speech/speech.jsonl"
    rows = [row for _, row in read_jsonl(speech)]
    rows = [{**row, "provenance": "synthesised: a voice"} for row in rows[:-1]] + [{**rows[-1], "licence": "CC0"}]
    write_jsonl(speech, rows)
    prepare(parts, [corpora.visdial(parts)])
    told = {(cut.custom.get("provenance"), cut.custom.get("licence")) for cut in load_cuts(parts / "out/train/cuts.jsonl.gz")}
    assert told == {("synthesised: a voice", None), (None, "CC0")}
    provenance = json.loads((parts / "out/train/statistics.json").read_text())["provenance"]
    assert provenance["dialogues"] == {"from": "visdial_1.0_train.json", "licence": "CC BY 4.0 (VisDial v1.0)"}
    assert provenance["speech"] == [
        {"from": "synthesised: a voice", "licence": "not told", "recordings": len(rows) - 1},
        {"from": "not told", "licence": "CC0", "recordings": 1},
    ]
