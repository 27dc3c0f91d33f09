"""Long recordings: segments, joins, a journal that survives a kill, memory that does not grow, silence without text."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import wave
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from xllm_speech import XLLM, CifAsr
from xllm_speech.base.errors import ConfigError
from xllm_speech.bin import main as entry
from xllm_speech.features.audio import load_samples
from xllm_speech.features.vad import VadConfig
from xllm_speech.infer import long_audio
from xllm_speech.infer.asr import DecodingReport
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.llm_hotwords import Hotwords
from xllm_speech.infer.long_audio import join_two, journal_path, remove_journals, transcribe_long, transcribe_recordings
from xllm_speech.infer.segments import SHORTEST_SEC, CifSegments, LlmSegments
from xllm_speech.models.asr import SearchConfig
from xllm_speech.records import Hypothesis, TimedToken

needs_silero = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="the optional package silero-vad is not installed"
)
SHORT = VadConfig(longest_sec=6.0)


@pytest.fixture(scope="module")
def model(model_dir):
    return CifSegments(CifAsr.from_pretrained(model_dir), SearchConfig())


@pytest.fixture(scope="module")
def long_file(shared_data, tmp_path_factory):
    """About two minutes: real utterances, some with a pause between them and some without."""
    paths = sorted((shared_data / "aishell1_sample_S0150" / "wav" / "S0150").glob("*.wav"))[:24]
    parts = []
    for number, path in enumerate(paths):
        samples = soundfile.read(path, dtype="float32")[0]
        parts += [samples, np.zeros(0 if number % 3 else 16000, dtype=np.float32)]
    path = tmp_path_factory.mktemp("long") / "meeting.wav"
    soundfile.write(path, np.concatenate(parts), 16000)
    return path


@needs_silero
def test_segments_cover_the_speech_in_order(model, long_file):
    report = DecodingReport()
    found = list(transcribe_long(model, long_file, vad=SHORT, report=report))
    assert len(found) > 10
    assert [h.id for h in found] == [f"meeting-{n:05d}" for n in range(1, len(found) + 1)]
    assert {h.recording for h in found} == {"meeting"}
    assert report.utterances == len(found)
    end = 0.0
    for hypothesis in found:
        assert hypothesis.start_sec >= end - 1e-3
        end = hypothesis.start_sec + hypothesis.duration_sec
        for token in hypothesis.tokens:
            assert hypothesis.start_sec - 1.01 <= token.start_sec <= token.end_sec <= end + 1e-3
    times = [token.end_sec for hypothesis in found for token in hypothesis.tokens]
    assert times == sorted(times)


@needs_silero
def test_a_finished_journal_gives_the_same_and_recognises_nothing(model, long_file, tmp_path):
    journal = tmp_path / "out" / "a.journal"
    first = list(transcribe_long(model, long_file, journal, vad=SHORT))
    report = DecodingReport()
    again = list(transcribe_long(model, long_file, journal, vad=SHORT, report=report))
    assert again == first
    assert report.audio_sec == 0
    rows = journal.read_text().splitlines()
    journal.write_text("\n".join(rows[:4]) + "\n" + rows[4][: len(rows[4]) // 2])  # a line cut short
    assert list(transcribe_long(model, long_file, journal, vad=SHORT, report=report)) == first
    assert report.audio_sec > 0
    assert journal.read_text().splitlines() == rows


@needs_silero
def test_a_killed_run_is_taken_up_again(model_dir, model, long_file, tmp_path):
    journal = tmp_path / "a.journal"
    code = (
        "import sys, time\n"
        "from xllm_speech import CifAsr\n"
        "from xllm_speech.features.vad import VadConfig\n"
        "from xllm_speech.infer.long_audio import transcribe_long\n"
        "from xllm_speech.infer.segments import CifSegments\n"
        "from xllm_speech.models.asr import SearchConfig\n"
        "model = CifSegments(CifAsr.from_pretrained(sys.argv[1]), SearchConfig())\n"
        "for n, _ in enumerate(transcribe_long(model, sys.argv[2], sys.argv[3], vad=VadConfig(longest_sec=6.0))):\n"
        "    if n == 4:\n"
        "        print('there', flush=True)\n"
        "        time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, model_dir, long_file, journal], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"there\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(journal.read_text().splitlines()) - 1
    report = DecodingReport()
    found = list(transcribe_long(model, long_file, journal, vad=SHORT, report=report))
    assert 5 <= done < len(found)
    assert found == list(transcribe_long(model, long_file, vad=SHORT))
    assert report.utterances == len(found)
    assert report.audio_sec < sum(h.duration_sec for h in found[done - 3 :]) + 3


@needs_silero
def test_an_xllm_that_was_killed_ends_in_the_same_file(xllm_dir, long_file, tmp_path):
    out, whole, talk = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl", tmp_path / "talk.wav"
    soundfile.write(talk, soundfile.read(long_file, dtype="int16")[0][: 50 * 16000], 16000)
    words = ["transcribe", "--model", str(xllm_dir), "--method", "llm", "--long", "--longest-sec", "6", "--max-tokens", "6",
             "--batch-sec", "20", "--threads", "1", str(talk), "--out"]
    code = (
        "import sys, time\n"
        "from xllm_speech.bin.main import main\n"
        "from xllm_speech.infer import long_audio\n"
        "join = long_audio._join_pieces\n"
        "def wait(pairs):\n"
        "    for n, hypothesis in enumerate(join(pairs)):\n"
        "        if n == 4:\n"
        "            print('there', flush=True)\n"
        "            time.sleep(60)\n"
        "        yield hypothesis\n"
        "long_audio._join_pieces, long_audio.GROUP_SEC = wait, 10.0\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *words, out], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"there\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    done = len(journal_path(out, talk).read_text().splitlines()) - 1
    assert entry.main([*words, str(whole)]) == entry.main([*words, str(out)]) == 0
    assert out.read_text() == whole.read_text()
    rows = [json.loads(row) for row in out.read_text().splitlines()]
    assert 5 <= done < len(rows)
    assert len({row["text"] for row in rows}) > 3
    audio_sec = {path: json.loads((tmp_path / f"{path.name}.meta.json").read_text())["audio_sec"] for path in (out, whole)}
    assert 0 < audio_sec[out] < audio_sec[whole]
    assert not list(tmp_path.glob("*.journal"))


@needs_silero
def test_segments_fit_the_speech_interface_of_an_xllm(xllm_dir, model):
    xllm = XLLM.from_pretrained(xllm_dir)
    segments = LlmSegments(xllm, xllm.make_recogniser(AnswerOptions(8)))
    description = xllm.checkpoint.description.model
    assert segments.vad.longest_sec == SHORTEST_SEC
    description.interfaces.speech.positions = 65
    assert segments.vad.longest_sec == pytest.approx(10.0)
    description.interfaces.speech.positions = 512
    assert segments.vad.longest_sec == model.vad.longest_sec == VadConfig().longest_sec
    told = segments.describe()
    other = LlmSegments(xllm, xllm.make_recogniser(AnswerOptions(8), guard=False, hotwords=Hotwords(["红色"]))).describe()
    assert [key for key in told if told[key] != other[key]] == ["search", "guard"]
    assert json.loads(json.dumps(told)) == told


@needs_silero
def test_a_journal_of_another_run_is_refused(model, long_file, tmp_path):
    journal = tmp_path / "a.journal"
    next(transcribe_long(model, long_file, journal, vad=SHORT))
    with pytest.raises(ConfigError, match=r"a.journal: the journal of another run: search, vad differ"):
        next(transcribe_long(replace(model, search=SearchConfig("beam")), long_file, journal, vad=VadConfig()))
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], "{}", *lines[1:]]) + "\n")
    with pytest.raises(ConfigError, match=r"a.journal:2: not a line of a journal"):
        next(transcribe_long(model, long_file, journal, vad=SHORT))
    journal.write_text(json.dumps({"format": "other"}) + "\n")
    with pytest.raises(ConfigError, match="not a journal of a long recording"):
        next(transcribe_long(model, long_file, journal, vad=SHORT))


@needs_silero
@pytest.mark.parametrize("level", [0.0, 0.2])
def test_silence_and_noise_give_no_text(model, tmp_path, level):
    path = tmp_path / "empty.wav"
    soundfile.write(path, level * np.random.default_rng(0).standard_normal(60 * 16000), 16000)
    (hypothesis,) = transcribe_long(model, path)
    assert (hypothesis.id, hypothesis.text, hypothesis.tokens) == ("empty", "", [])
    assert hypothesis.duration_sec == 60
    assert hypothesis.error is None


@needs_silero
def test_containers_of_other_libraries_and_broken_files(model, long_file, tmp_path):
    import av

    samples = soundfile.read(long_file, dtype="int16")[0][: 20 * 16000]
    with av.open(str(tmp_path / "talk.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    report = DecodingReport()
    out = tmp_path / "result.json"
    found = list(transcribe_recordings(model, [tmp_path / "talk.m4a", tmp_path / "bad.wav"], out, report, vad=SHORT))
    assert [h.recording for h in found[:-1]] == ["talk"] * (len(found) - 1)
    assert len(found) > 2
    assert "unreadable audio" in found[-1].error
    assert [name for name, _ in report.failed] == ["bad"]
    assert journal_path(out, "talk.m4a").is_file()
    with pytest.raises(ConfigError, match=r"two recordings are named bad.wav"):
        list(transcribe_recordings(model, [tmp_path / "bad.wav", tmp_path / "other" / "bad.wav"], out))
    remove_journals(out, ["talk.m4a", "bad.wav"])
    assert list(tmp_path.glob("*.journal")) == []


@needs_silero
def test_a_recording_is_read_in_blocks_and_only_as_far_as_is_needed(model, long_file, tmp_path, monkeypatch):
    """Memory is bounded because no read is longer than a block, and reading does not run ahead of recognition."""
    path = tmp_path / "hours.wav"
    samples = soundfile.read(long_file, dtype="int16")[0][: 60 * 16000].tobytes()
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        for _ in range(30):
            out.writeframes(samples)
    reads = []

    def spy(cut, channel):
        reads.append((cut.start, cut.duration))
        return load_samples(cut, channel)

    monkeypatch.setattr(long_audio, "load_samples", spy)
    stream = transcribe_long(model, path)
    assert next(stream).text
    assert max(length for _, length in reads) <= long_audio.BLOCK_SEC
    assert max(start for start, _ in reads) < 300


def make(start, text, times, duration=10.0):
    tokens = [TimedToken(letter, start + t - 0.1, start + t + 0.1) for letter, t in zip(text, times, strict=True)]
    return Hypothesis("x", text, tokens, start_sec=start, duration_sec=duration)


def test_pieces_join_at_a_token_that_both_have():
    first = make(0.0, "甲乙丙丁戊", [1, 5, 9.0, 9.5, 9.9])  # the last token is cut off and wrong
    second = make(9.0, "丙丁己庚", [0.05, 0.55, 0.9, 4])
    left, right = join_two(first, second)
    assert (left.text, right.text) == ("甲乙丙丁", "己庚")
    assert left.start_sec + left.duration_sec == pytest.approx(right.start_sec)
    assert right.start_sec + right.duration_sec == pytest.approx(19.0)


def test_words_keep_their_spaces_where_pieces_join():
    left = Hypothesis("x", "甲 of the", [TimedToken(text, t, t + 0.2) for text, t in (("甲", 1), ("of", 9.2), ("the", 9.5))],
                      start_sec=0.0, duration_sec=10.0)
    right = Hypothesis("x", "of the red house", [
        TimedToken(text, t, t + 0.2) for text, t in (("of", 9.2), ("the", 9.5), ("red", 11), ("house", 12))
    ], start_sec=9.0, duration_sec=10.0)
    assert [piece.text for piece in join_two(left, right)] == ["甲 of the", "red house"]


def test_pieces_without_a_common_token_part_in_the_middle():
    left, right = join_two(make(0.0, "甲乙丙", [1, 9.1, 9.8]), make(9.0, "丁戊己", [0.1, 0.9, 3]))
    assert (left.text, right.text) == ("甲乙", "戊己")
    nothing = replace(make(9.0, "", []))
    assert join_two(make(0.0, "甲", [1]), nothing)[0].text == "甲"
