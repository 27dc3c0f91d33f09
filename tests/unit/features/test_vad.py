"""Voice activity: the network beside the package's own, blocks of any size, segments counted by hand, silence and noise."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from xllm_speech.base.errors import ConfigError, MissingDependency
from xllm_speech.features import vad
from xllm_speech.features.vad import WINDOW_SEC, SileroVad, SpeechDetector, VadConfig, find_segments, load_vad

needs_silero = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="the optional package silero-vad is not installed"
)


@pytest.fixture(scope="module")
def speech(shared_data):
    path = min((shared_data / "aishell1_sample_S0150" / "wav" / "S0150").glob("*.wav"))
    return soundfile.read(path, dtype="float32")[0]


@needs_silero
def test_the_network_equals_the_packages_own(speech):
    """With the weights of the package's TorchScript file; its safetensors file holds another training of the same network."""
    folder = Path(importlib.util.find_spec("silero_vad").submodule_search_locations[0])
    theirs = torch.jit.load(str(folder / "data" / "silero_vad.jit"))
    source = dict(theirs._model.named_parameters()) | dict(theirs._model.named_buffers())
    names = {"stft_conv.weight": "stft.forward_basis_buffer"}
    for layer in range(4):
        for part in ("weight", "bias"):
            names[f"conv{layer + 1}.{part}"] = f"encoder.{layer}.reparam_conv.{part}"
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        names[f"lstm.{part}_l0"] = f"decoder.rnn.{part}"
    for part in ("weight", "bias"):
        names[f"final_conv.{part}"] = f"decoder.decoder.2.{part}"
    ours = SileroVad()
    ours.load_state_dict({name: source[other] for name, other in names.items()})
    detector = SpeechDetector(ours)
    found = detector.push(speech) + detector.finish()
    theirs.reset_states()
    with torch.inference_mode():
        expected = theirs.audio_forward(torch.tensor(speech)[None], 16000)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-4)


@needs_silero
def test_blocks_of_any_size_give_the_same_probabilities(speech):
    model = load_vad()
    whole = SpeechDetector(model)
    expected = whole.push(speech) + whole.finish()
    generator = np.random.default_rng(0)
    cuts = np.sort(generator.integers(0, len(speech), 40))
    pieces = SpeechDetector(model)
    found = [value for piece in np.split(speech, cuts) for value in pieces.push(piece)] + pieces.finish()
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(found) == -(-len(speech) // 512)


@needs_silero
def test_speech_is_found_where_it_lies(speech):
    silence = np.zeros(3 * 16000, dtype=np.float32)
    detector = SpeechDetector(load_vad())
    probabilities = detector.push(np.concatenate([silence, speech, silence, speech, silence])) + detector.finish()
    duration = len(speech) / 16000
    first, second = find_segments(probabilities, 9 + 2 * duration)
    assert 3 <= first.start_sec < first.end_sec <= 3 + duration + 0.3
    assert 6 + duration <= second.start_sec < second.end_sec <= 6 + 2 * duration + 0.3
    assert first.duration_sec > 0.5 * duration


@needs_silero
@pytest.mark.parametrize("kind", ["silence", "faint", "noise", "tones", "clicks"])
def test_what_is_no_speech_gives_no_segment(kind):
    generator = np.random.default_rng(0)
    seconds = np.arange(20 * 16000) / 16000
    match kind:
        case "silence":
            samples = np.zeros_like(seconds)
        case "faint":
            samples = 1e-4 * generator.standard_normal(len(seconds))
        case "noise":
            samples = 0.2 * generator.standard_normal(len(seconds))
        case "tones":
            swell = 0.5 + 0.5 * np.sin(np.pi * seconds)
            samples = 0.1 * swell * sum(np.sin(2 * np.pi * hz * seconds) for hz in (220, 277, 330, 440))
        case _:
            samples = np.zeros_like(seconds)
            samples[::8000] = 0.9
    detector = SpeechDetector(load_vad())
    assert list(find_segments(detector.push(samples.astype(np.float32)), 20.0)) == []


def track(*parts):
    """Probabilities from (seconds, value) pairs."""
    return [value for seconds, value in parts for _ in range(round(seconds / WINDOW_SEC))]


def test_pauses_padding_and_short_noises():
    probabilities = track((1, 0.1), (2, 0.9), (0.2, 0.1), (1, 0.9), (1, 0.1), (0.1, 0.9), (1, 0.1), (1, 0.9))
    segments = list(find_segments(probabilities, 7.3))
    assert [(round(s.start_sec, 1), round(s.end_sec, 1)) for s in segments] == [(0.8, 4.4), (6.0, 7.3)]
    assert not any(segment.joined for segment in segments)


def test_hysteresis_keeps_a_stretch_together():
    assert len(list(find_segments(track((1, 0.9), (2, 0.4), (1, 0.9)), 4))) == 1
    assert len(list(find_segments(track((1, 0.9), (2, 0.3), (1, 0.9)), 4))) == 2


def test_paddings_that_meet_do_not_overlap():
    config = VadConfig(pad_sec=0.3, least_pause_sec=0.3)
    first, second = find_segments(track((1, 0.9), (0.5, 0.0), (1, 0.9)), 2.5, config)
    assert first.end_sec == second.start_sec
    assert 1.0 < first.end_sec < 1.5


def test_long_speech_is_cut_at_its_weakest_place_with_an_overlap():
    parts = [(13.0, 0.9), (0.1, 0.55), (36.9, 0.9)]
    segments = list(find_segments(track(*parts), 50.0))
    assert all(segment.duration_sec <= 20.0 for segment in segments)
    assert segments[0].end_sec == pytest.approx(13.05 + 0.5, abs=0.1)
    assert [segment.joined for segment in segments] == [False] + [True] * (len(segments) - 1)
    for before, after in itertools.pairwise(segments):
        assert before.end_sec - after.start_sec == pytest.approx(1.0)
    assert segments[-1].end_sec == pytest.approx(50.0, abs=0.05)


def test_segments_come_as_soon_as_they_are_known():
    def endless():
        while True:
            yield from track((1, 0.9), (1, 0.0))

    stream = find_segments(endless(), 1e9)
    assert [round(next(stream).end_sec) for _ in range(3)] == [1, 3, 5]


def test_wrong_settings_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"vad.threshold 0.1"):
        VadConfig(threshold=0.1)
    with pytest.raises(ConfigError, match=r"vad.pad_sec -1"):
        VadConfig(pad_sec=-1)
    with pytest.raises(ConfigError, match=r"vad.longest_sec 3 must be at least 5.4"):
        VadConfig(longest_sec=3)
    with pytest.raises(ConfigError, match=r"vad.pad_sec 0.4 must not exceed least_pause_sec 0.3"):
        VadConfig(pad_sec=0.4)
    monkeypatch.setattr(vad.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'silero-vad>=6.2'"):
        load_vad()
