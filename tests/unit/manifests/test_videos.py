"""Video corpora: exact forms with real clips made here, oddities of entries, and the published files' samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.videos import open_clip, prepare_videos
from xllm_speech.records.manifest import Conversation


def prepare(corpus: str, path: Path, videos: Path, out: Path, **more: Any) -> dict[str, Conversation]:
    prepare_videos(corpus, [path], [videos], out, **{"max_rejected": 0.0, **more})
    return {item.id: item for file in sorted(out.glob("*/*.gz")) for item in read_conversations(file)}


def texts(conversation: Conversation) -> list[str]:
    return [str(item.text) for message in conversation.messages for item in message.items if item.type == "text"]


def rejected(out: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["kind"]) for file in sorted(out.glob("*/rejected.jsonl")) for _, row in read_jsonl(file)]


def test_msrvtt_in_three_sets(tmp_path: Path) -> None:
    path = corpora.msrvtt(tmp_path)
    found = prepare("msrvtt", path, tmp_path / "videos", tmp_path / "out")
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["dev", "test", "train"]
    assert {key: texts(item) for key, item in found.items()} == {
        f"msrvtt-{2 * number + place}": [f"someone does {number}"] for number in range(3) for place in range(2)
    }
    one = found["msrvtt-2"]
    assert (one.task, one.messages[0].items[0].type) == ("video", "video")
    assert Path(str(one.messages[0].items[0].path)).name == "video1.mp4"
    assert one.custom == {"video_id": "video1", "category": 9, "url": "https://video", "source_sec": [1.5, 9.0]}
    value = json.loads(path.read_text())
    value["sentences"].append({"caption": "x", "video_id": "video9", "sen_id": 90})
    value["sentences"].append({"caption": " ", "video_id": "video0", "sen_id": 91})
    corpora.write_json(path, value)
    prepare("msrvtt", path, tmp_path / "videos", tmp_path / "odd", max_rejected=0.9)
    assert sorted(rejected(tmp_path / "odd")) == [("msrvtt-90", "bad-entry"), ("msrvtt-91", "empty-caption")]


def test_activitynet_by_video_and_by_event(tmp_path: Path) -> None:
    path = corpora.activitynet(tmp_path)
    found = prepare("activitynet", path, tmp_path / "videos", tmp_path / "out")
    one = found["activitynet-v_aaaaaaaaaaa"]
    assert texts(one) == ["He begins. He ends."]
    assert one.custom["events"] == [[0, 1.0, "He begins."], [1.0, 2.4, "He ends."]]
    events = prepare("activitynet", path, tmp_path / "videos", tmp_path / "events", events=True)
    assert len(events) == 3
    second = events["activitynet-v_aaaaaaaaaaa-1"].messages[0].items[0]
    assert (second.offset_sec, second.duration_sec) == (1.0, 1.0)  # the clip lasts 2 s, the span ends at 2.4


def test_activitynet_oddities(tmp_path: Path) -> None:
    path = corpora.write_json(tmp_path / "train.json", {
        "v_a": {"duration": 9.0, "timestamps": [[5.0, 2.0], [1, 1], [0, 4], [1, 2]], "sentences": ["back", "none", " ", "ok"]},
        "v_b": {"duration": 9.0, "timestamps": [[0, 1]], "sentences": []}, "v_c": ["x"],
        "v_d": {"duration": 9.0, "timestamps": [["a", 1]], "sentences": ["x"]},
        "v_e": {"duration": 9.0, "timestamps": [], "sentences": []},
    })  # fmt: skip
    found = prepare("activitynet", path, tmp_path, tmp_path / "out", open_media=False, max_rejected=1.0)
    assert texts(found["activitynet-v_a"]) == ["ok back"]
    assert rejected(tmp_path / "out") == [
        ("activitynet-v_a-1", "bad-event"), ("activitynet-v_a-2", "bad-event"), ("activitynet-v_b", "bad-entry"),
        ("activitynet-v_c", "bad-entry"), ("activitynet-v_d-0", "bad-event"), ("activitynet-v_e", "bad-entry"),
    ]
    reasons = [row["reason"] for _, row in read_jsonl(tmp_path / "out/train/rejected.jsonl")]
    assert "1 timestamps for 0 sentences" in reasons
    assert "timestamps ['a', 1] are not [start, end] in seconds" in reasons


def test_avsd_dialogues(tmp_path: Path) -> None:
    path = corpora.avsd(tmp_path)
    found = prepare("avsd", path, tmp_path / "videos", tmp_path / "out")
    one = found["avsd-ABCDE"]
    assert texts(one) == ["question 0 ?", "answer 0", "question 1 ?", "answer 1", "question 2 ?", "answer 2"]
    assert [len(message.items) for message in one.messages] == [2, 1, 1, 1, 1, 1]
    assert one.custom == {"video_id": "ABCDE", "caption": "a man sits .", "summary": "he sits"}
    value = json.loads(path.read_text())
    for place, change in enumerate(({}, {"answer": "__UNDISCLOSED__"})):  # as in test sets
        value["dialogs"][0]["dialog"][2] = {"question": "question 2 ?", **change}
        corpora.write_json(path, value)
        assert len(texts(prepare("avsd", path, tmp_path / "videos", tmp_path / str(place))["avsd-ABCDE"])) == 4


def test_clips_that_are_missing_or_broken(tmp_path: Path) -> None:
    path = corpora.msrvtt(tmp_path)
    corpora.truncate(tmp_path / "videos" / "video0.mp4")
    (tmp_path / "videos" / "video1.mp4").unlink()
    (tmp_path / "videos" / "video2.mp4").write_text("not a clip")
    with pytest.raises(DataError, match="nothing usable"):
        prepare("msrvtt", path, tmp_path / "videos", tmp_path / "out", max_rejected=1.0)
    with pytest.raises(DataError, match="no such folder of clips"):
        prepare("msrvtt", path, tmp_path / "none", tmp_path / "out")
    with pytest.raises(DataError, match="not MSR-VTT"):
        prepare("msrvtt", corpora.write_json(tmp_path / "x.json", {"videos": []}), tmp_path / "videos", tmp_path / "out")


def test_clips_whole_and_broken(tmp_path: Path) -> None:
    good = corpora.clip(tmp_path / "good.mp4", frames=20, rate_hz=5)
    assert open_clip(str(good)).duration_sec == pytest.approx(4.0, abs=0.3)
    (tmp_path / "text.mp4").write_text("no")
    corpora.wav(tmp_path / "sound.wav")
    for path in (corpora.truncate(corpora.clip(tmp_path / "cut.mp4")), tmp_path / "text.mp4", tmp_path / "sound.wav"):
        assert open_clip(str(path)).kind == "clip-broken"
    assert open_clip(str(tmp_path / "none.mp4")).kind == "clip-missing"


def test_real_clips(shared_data: Path) -> None:
    folder = shared_data / "videos"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    kinds = {path.name: open_clip(str(path)).kind for path in folder.iterdir() if path.suffix != ".tsv"}
    assert {name for name, kind in kinds.items() if kind} == {"corrupted.mp4"}


def sample(shared_data: Path, name: str) -> Path:
    path = shared_data / "annotation_samples" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


def test_real_msrvtt(shared_data: Path, tmp_path: Path) -> None:
    path = sample(shared_data, "msrvtt_it_videodatainfo_100videos.json")
    found = prepare("msrvtt", path, tmp_path, tmp_path / "out", open_media=False)
    rows = json.loads(path.read_text())["sentences"]
    assert {key: texts(item) for key, item in found.items()} == {
        f"msrvtt-{row['sen_id']}": [" ".join(row["caption"].split())] for row in rows
    }
    assert rejected(tmp_path / "out") == []


@pytest.mark.parametrize("events", [False, True])
def test_real_activitynet(shared_data: Path, tmp_path: Path, events: bool) -> None:
    path = sample(shared_data, "activitynet_captions_val_1_200videos.json")
    found = prepare("activitynet", path, tmp_path, tmp_path / "out", open_media=False, events=events)
    value = json.loads(path.read_text())
    assert len(found) == (sum(len(one["sentences"]) for one in value.values()) if events else len(value))
    said = sorted(word for item in found.values() for text in texts(item) for word in text.split())
    assert said == sorted(word for one in value.values() for text in one["sentences"] for word in text.split())


def test_real_avsd(shared_data: Path, tmp_path: Path) -> None:
    path = sample(shared_data, "avsd_dstc7_100.json")
    found = prepare("avsd", path, tmp_path, tmp_path / "out", open_media=False)
    for dialog in json.loads(path.read_text())["dialogs"]:
        wanted = [" ".join(turn[key].split()) for turn in dialog["dialog"] for key in ("question", "answer")]
        assert texts(found[f"avsd-{dialog['image_id']}"]) == wanted
