"""A stream ends in the text of the same samples recognised as a file; its partial texts come within the promised delay."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json

import numpy as np
import pytest
import soundfile
import torch

from xllm_speech import CifAsr
from xllm_speech.base.errors import ConfigError
from xllm_speech.infer import streaming
from xllm_speech.infer.stream_output import StreamPrinter
from xllm_speech.infer.stream_sources import read_recording
from xllm_speech.infer.streaming import EndpointConfig, StreamingRecogniser, StreamUpdate, stream_recordings
from xllm_speech.models.asr import SearchConfig
from xllm_speech.models.fusion import build_fusion
from xllm_speech.records import Hypothesis


@pytest.fixture(scope="module")
def model(chunked_dir):
    return CifAsr.from_pretrained(chunked_dir)


def make_sound(seconds, seed=0):
    """Noise that swells, so that the units of an untrained model do not come evenly."""
    generator = np.random.default_rng(seed)
    count = int(seconds * 16000)
    swell = np.abs(np.sin(np.linspace(0, 9 * seconds, count))) + 0.01
    return (0.1 * swell * generator.standard_normal(count)).astype(np.float32)


def cut(samples, size):
    return np.split(samples, range(0, len(samples), size)[1:])


@pytest.mark.parametrize("seconds", [0.02, 0.31, 1.0, 5.37])
@pytest.mark.parametrize("size", [37, 1600, 5003, 10**6])
def test_the_final_text_is_that_of_the_file(model, tmp_path, seconds, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, make_sound(seconds), 16000, subtype="FLOAT")
    (whole,) = model.transcribe(path)
    assert whole.error is None
    updates = list(stream_recordings(StreamingRecogniser(model), cut(make_sound(seconds), size)))
    final = updates[-1].hypothesis
    assert [update.final for update in updates] == [False] * (len(updates) - 1) + [True]
    assert final.text == whole.text
    assert seconds < 5 or len(final.text) > 8
    for ours, theirs in zip(final.tokens, whole.tokens, strict=True):
        assert ours.text == theirs.text
        assert (ours.start_sec, ours.end_sec) == pytest.approx((theirs.start_sec, theirs.end_sec), abs=2e-3)
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-3)
    for before, after in itertools.pairwise(updates):
        assert after.hypothesis.text.startswith(before.hypothesis.text)


@pytest.mark.parametrize("kind", ["silence", "noise", "speech"])
def test_where_nobody_speaks_a_stream_ends_without_text_as_the_file_does(chunked_dir, tmp_path, shared_data, kind):
    model = CifAsr.from_pretrained(chunked_dir)
    with torch.no_grad():
        model.model.ctc_head.bias[0] += 30  # CTC hears nothing, so that voice activity decides
    path = next((shared_data / "aishell1_sample_S0150" / "wav" / "S0150").glob("*.wav"))
    if kind != "speech":
        path = tmp_path / "a.wav"
        soundfile.write(path, make_sound(3.0) * (kind == "noise"), 16000, subtype="FLOAT")
    (whole,) = model.transcribe(path)
    updates = list(stream_recordings(StreamingRecogniser(model), read_recording(path)))
    final = updates[-1].hypothesis
    assert len(updates) > 1
    assert (final.text, final.extra.get("guard", {}).get("reason")) == (whole.text, whole.extra.get("guard", {}).get("reason"))
    assert bool(final.text) == (kind == "speech")


@pytest.mark.parametrize("method", ["beam", "ctc"])
def test_other_searches_end_in_the_text_of_the_file_too(model, tmp_path, method):
    path = tmp_path / "a.wav"
    soundfile.write(path, make_sound(3.0), 16000, subtype="FLOAT")
    search = SearchConfig(method, beam=3, fusion=build_fusion(model.table, hotwords=["天地", "日月盈"]))
    (whole,) = model.transcribe(path, search)
    final = list(stream_recordings(StreamingRecogniser(model, search), cut(make_sound(3.0), 999)))[-1].hypothesis
    assert final.text == whole.text
    assert final.score == pytest.approx(whole.score, abs=1e-2)


def test_tokens_are_shown_within_the_delay(model):
    recogniser = StreamingRecogniser(model)
    assert recogniser.delay_sec == pytest.approx((4 + 2) * 0.08 + 0.0075)
    shown = 0
    for update in stream_recordings(recogniser, cut(make_sound(6.0), 160)):
        for token in update.hypothesis.tokens[shown:]:
            assert update.heard_sec - token.end_sec <= recogniser.delay_sec + 0.01
        shown = len(update.hypothesis.tokens)
    assert shown > 8


def test_utterances_end_at_their_longest(model):
    sound = make_sound(11.0)
    endings = []
    for size in (800, 7777):
        recogniser = StreamingRecogniser(model, endpoint=EndpointConfig(silence_sec=0, longest_sec=3))
        finals = [u.hypothesis for u in stream_recordings(recogniser, cut(sound, size)) if u.final]
        assert len(finals) == 4
        assert [h.id for h in finals] == [f"stream-{n:05d}" for n in range(1, 5)]
        for before, after in itertools.pairwise(finals):
            assert after.start_sec == pytest.approx(before.start_sec + before.duration_sec, abs=2e-3)
        endings.append([(h.start_sec, h.text) for h in finals])
    assert endings[0] == endings[1]


class MadeUpDetector:
    """Speech from second 2 to 4 and from 6 to the end, with a pause of 0.3 s."""

    def __init__(self, model):
        self.windows = 0

    def push(self, window):
        second = self.windows * 0.032
        self.windows += 1
        return [0.9 if 2 <= second < 4 or (second >= 6 and not 7 < second < 7.3) else 0.1]


@pytest.mark.parametrize("size", [300, 5000])
def test_speech_is_cut_out_by_voice_activity_and_recognised_as_if_alone(model, tmp_path, monkeypatch, size):
    monkeypatch.setattr(streaming, "load_vad", lambda: None)
    monkeypatch.setattr(streaming, "SpeechDetector", MadeUpDetector)
    sound = make_sound(9.01)
    recogniser = StreamingRecogniser(model, endpoint=EndpointConfig(silence_sec=0.8))
    updates = list(stream_recordings(recogniser, cut(sound, size)))
    finals = [update.hypothesis for update in updates if update.final]
    assert [(round(h.start_sec, 1), round(h.start_sec + h.duration_sec, 1)) for h in finals] == [(1.8, 4.2), (5.8, 9.0)]
    first = next(update for update in updates if update.final)
    assert first.heard_sec == pytest.approx(4.8, abs=0.07)
    for hypothesis in finals:
        begin = round(hypothesis.start_sec * 16000)
        soundfile.write(tmp_path / "a.wav", sound[begin : begin + round(hypothesis.duration_sec * 16000)], 16000, "FLOAT")
        (alone,) = model.transcribe(tmp_path / "a.wav")
        assert alone.text == hypothesis.text != ""
        assert hypothesis.tokens[0].end_sec == pytest.approx(alone.tokens[0].end_sec + hypothesis.start_sec, abs=2e-3)


@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="the optional package silero-vad is not installed")
def test_what_is_no_speech_gives_no_text(model):
    noise = 0.2 * np.random.default_rng(0).standard_normal(10 * 16000)
    (update,) = stream_recordings(StreamingRecogniser(model, endpoint=EndpointConfig()), cut(noise, 4000))
    assert (update.final, update.hypothesis.text) == (True, "")


def test_state_does_not_grow_with_a_quiet_stream(model):
    recogniser = StreamingRecogniser(model)
    sizes = []
    for _ in range(4):
        for _ in range(20):
            list(recogniser.push(np.zeros(1600, dtype=np.float32)))
        utterance = recogniser.utterance
        sizes.append((
            len(utterance.fbank.samples_N) < 1000, len(utterance.encoder.frames_TF) < 32, len(utterance.cif.seen_SD) <= 8,
            [state.cache[0].shape[2] for state in utterance.encoder.states],
        ))
    assert sizes[1:] == sizes[:-1]
    assert sizes[0][:3] == (True, True, True)


def test_a_model_of_whole_utterances_and_wrong_options_are_refused(model, model_dir):
    with pytest.raises(ConfigError, match=r"whole utterances.*chunk_steps"):
        StreamingRecogniser(CifAsr.from_pretrained(model_dir))
    with pytest.raises(ConfigError, match="trained without pictures"):
        StreamingRecogniser(model, image="a.png")
    with pytest.raises(ConfigError, match=r"endpoint.silence_sec -1"):
        EndpointConfig(silence_sec=-1)


def update(text, final=False):
    return StreamUpdate(Hypothesis("s-1", text), final, 1.25)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_and_the_growing_line():
    plain = io.StringIO()
    with StreamPrinter(plain) as printer:
        for item in (update("天"), update("天地", True), update("", True)):
            printer.show(item)
    assert plain.getvalue() == "s-1 天地\n"
    lines = io.StringIO()
    with StreamPrinter(lines, "json", partial=True) as printer:
        printer.show(update("天"))
        printer.show(update("天地", True))
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(row["text"], row["final"], row["heard"]) for row in rows] == [("天", False, 1.25), ("天地", True, 1.25)]
    screen = Terminal()
    with StreamPrinter(screen) as printer:
        printer.show(update("天地"))
        printer.show(update("天", True))
        printer.show(update("日"))
    assert screen.getvalue() == "\r天地\r天  \n\r日\n"
