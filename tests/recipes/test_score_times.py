"""Times beside the synthesiser's own: a transcript that knows them has no error, one that is late is late by that much."""

from __future__ import annotations

import json

import pytest
import soundfile
from lhotse import SupervisionSegment

voices = pytest.importorskip("voices")
if voices._wheel() is None:
    pytest.skip("eSpeak NG's wheel is not installed (pip install espeakng-loader)", allow_module_level=True)

import score_times  # noqa: E402
from noise import place  # noqa: E402
from plan import stream  # noqa: E402

from xllm_speech.features.audio import load_file  # noqa: E402
from xllm_speech.manifests.cuts import save_cuts  # noqa: E402

TEXT = "星形一共有几个"


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """An utterance as the corpus makes it."""
    path = tmp_path_factory.mktemp("said") / "u.wav"
    samples = place(stream(7, "sound", 12), voices.speak(TEXT, "f2", 216, 33), None, 0.0, [], 16000)
    soundfile.write(path, samples, 16000)
    found = load_file(path)
    found.supervisions = [SupervisionSegment("u", "u", 0.0, found.duration, text=TEXT)]
    found.custom = {"voice": f"{voices.VOICE}+f2", "speed": 216, "pitch": 33, "seed": 7, "image_id": 12}
    return found


def test_edges_lie_where_the_voice_is(cut):
    edges = score_times.true_edges(cut)
    assert set(edges) == {0, 1, 2, 4, 5, 6, 7}  # 一共 is one word
    assert list(edges.values()) == sorted(edges.values())
    samples, rate_hz = soundfile.read(str(cut.recording.sources[0].source))
    loud = [number / rate_hz for number in range(len(samples)) if abs(samples[number]) > 0.02]
    assert edges[0] == pytest.approx(loud[0], abs=0.08)
    assert edges[7] == pytest.approx(loud[-1], abs=0.08)


def test_errors_are_those_of_the_times(cut, tmp_path, monkeypatch):
    edges = score_times.true_edges(cut)
    known = [edges[place] if place in edges else (edges[2] + edges[4]) / 2 for place in range(8)]
    save_cuts([cut], tmp_path / "cuts.jsonl.gz")
    for late_sec, text in ((0.0, TEXT), (0.05, TEXT), (0.05, "星心一共有几个")):
        tokens = [
            {"text": letter, "start": known[place] + late_sec, "end": known[place + 1] + late_sec}
            for place, letter in enumerate(text)
        ]
        (tmp_path / "hyp.jsonl").write_text(json.dumps({"id": cut.id, "text": text, "tokens": tokens}) + "\n")
        out = tmp_path / "times.json"
        argv = ["score_times", str(tmp_path / "cuts.jsonl.gz"), str(tmp_path / "hyp.jsonl"), "--out", str(out)]
        monkeypatch.setattr("sys.argv", argv)
        assert score_times.main() == 0
        numbers = json.loads(out.read_text())
        assert numbers["median_error_ms"] == pytest.approx(1000 * late_sec, abs=0.2)
        assert numbers["start_median_bias_ms"] == pytest.approx(1000 * late_sec, abs=0.2)
        assert numbers["starts"] == (6 if text == TEXT else 5)


def test_what_does_not_belong_together_is_named(cut, tmp_path, monkeypatch, capsys):
    save_cuts([cut], tmp_path / "cuts.jsonl.gz")
    for row, message in (
        ({"id": "other", "tokens": []}, "other is not in"), ({"id": cut.id, "tokens": []}, "no character with a time"),
    ):
        (tmp_path / "hyp.jsonl").write_text(json.dumps(row) + "\n")
        monkeypatch.setattr("sys.argv", ["score_times", str(tmp_path / "cuts.jsonl.gz"), str(tmp_path / "hyp.jsonl")])
        assert score_times.main() == 1
        assert message in capsys.readouterr().err
