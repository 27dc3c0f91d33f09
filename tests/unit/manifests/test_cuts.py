from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import Rejects
from xllm_speech.manifests.cuts import load_cuts, make_recording, map_in_threads, save_cuts, utterance_of


def make_cut(path: Path, text: str | None = "你好") -> Cut:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(8000), 16000)
    cut = make_recording(path.stem, path).to_cut()
    cut.supervisions = [SupervisionSegment(path.stem, path.stem, 0, 0.5, text=text, speaker="s")] if text is not None else []
    return cut


def test_round_trip_is_lazy_and_readable(tmp_path: Path) -> None:
    cuts = [make_cut(tmp_path / f"u{number}.wav") for number in range(3)]
    cuts[0].custom = {"image": "pic.jpg", "caption": "一只猫", "dialog_id": 12, "round": 3, "dataloading_info": {}}
    assert save_cuts(cuts, tmp_path / "cuts.jsonl.gz") == 3
    loaded = load_cuts(tmp_path / "cuts.jsonl.gz")
    assert loaded.is_lazy
    for _ in range(2):  # may be iterated again
        assert [cut.id for cut in loaded] == ["u0", "u1", "u2"]
    assert "一只猫" in gzip.decompress((tmp_path / "cuts.jsonl.gz").read_bytes()).decode()
    assert "dataloading_info" not in gzip.decompress((tmp_path / "cuts.jsonl.gz").read_bytes()).decode()
    utterance = utterance_of(next(iter(loaded)))
    assert (utterance.text, utterance.speaker, utterance.image, utterance.caption) == ("你好", "s", "pic.jpg", "一只猫")
    assert (utterance.dialog_id, utterance.round, utterance.duration_sec) == ("12", 3, 0.5)
    first = (tmp_path / "cuts.jsonl.gz").read_bytes()
    save_cuts(loaded, tmp_path / "again.jsonl.gz")
    assert (tmp_path / "again.jsonl.gz").read_bytes() == first


@pytest.mark.parametrize("bad", [
    "{", "[]", "7", '{"id": "x"}', '{"type": "MonoCut", "id": "x"}', '{"type": "Elephant", "id": "x"}',
    '{"type": "MonoCut", "id": "x", "start": 0, "duration": 0, "channel": 0}',
    '{"type": "MonoCut", "id": "", "start": 0, "duration": 1, "channel": 0}',
    '{"type": "MonoCut", "id": "x", "start": 0, "duration": 1, "channel": 0, "recording": {"id": "x"}}',
])
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    good = json.dumps(make_cut(tmp_path / "a.wav").to_dict())
    (tmp_path / "cuts.jsonl").write_text(f"{good}\n\n{bad}\n{good}\n")
    with pytest.raises(DataError, match=r"cuts\.jsonl:3: "):
        list(load_cuts(tmp_path / "cuts.jsonl"))
    rejects = Rejects()
    loaded = load_cuts(tmp_path / "cuts.jsonl", rejects)
    for _ in range(2):
        assert len(list(loaded)) == 2
    assert [row["path"] for row in rejects.rows] == [f"{tmp_path}/cuts.jsonl:3"]


def test_files_are_found_beside_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus/exp").mkdir(parents=True)
    cut = make_cut(Path("corpus/wav/a.wav"))
    cut.recording.sources[0].source = "wav/a.wav"
    cut.custom = {"image": "wav/a.wav"}
    save_cuts([cut], "corpus/exp/cuts.jsonl.gz")
    (found,) = load_cuts("corpus/exp/cuts.jsonl.gz")
    assert found.recording.sources[0].source == str(tmp_path / "corpus/wav/a.wav")
    assert found.custom["image"] == str(tmp_path / "corpus/wav/a.wav")
    monkeypatch.chdir(tmp_path / "corpus")
    (found,) = load_cuts("exp/cuts.jsonl.gz")
    assert found.recording.sources[0].source == "wav/a.wav"


def test_nothing_half_written(tmp_path: Path) -> None:
    cut = make_cut(tmp_path / "a.wav")
    memory = cut.with_id("memory")
    memory.recording.sources = [AudioSource("memory", [0], b"RIFF")]
    with pytest.raises(DataError, match="memory"):
        save_cuts([make_cut(tmp_path / "b.wav"), memory], tmp_path / "cuts.jsonl.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        load_cuts(tmp_path / "cuts.jsonl.gz")


def test_utterances_with_none_or_several_supervisions(tmp_path: Path) -> None:
    cut = make_cut(tmp_path / "a.wav", text=None)
    assert utterance_of(cut).text is None
    cut.supervisions = [SupervisionSegment(str(n), "a", 0, 0.2, text="x") for n in range(2)]
    with pytest.raises(DataError, match="2 supervisions"):
        utterance_of(cut)


def test_threads_keep_order_and_bound_what_is_in_flight() -> None:
    drawn: list[int] = []

    def items() -> object:
        for number in range(100):
            drawn.append(number)
            yield number

    results = map_in_threads(lambda number: number**2, items(), jobs=3, window=10)  # type: ignore[arg-type]
    assert next(results) == (0, 0)
    assert len(drawn) == 10
    assert list(results) == [(number, number**2) for number in range(1, 100)]
