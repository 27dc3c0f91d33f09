"""Synthesis: any command, eSpeak NG, speakers by seed, kills, and the round trip through a recogniser."""

from __future__ import annotations

import argparse
import importlib.util
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, UserError
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.datasets.synthesis import (
    CommandVoice,
    EspeakVoice,
    EspnetVoice,
    read_spoken_texts,
    synthesise,
)


class Tones:
    """A back-end that hums as long as the text is; it counts what it spoke, and fails at some texts."""

    name = "tones"
    speakers = ("a", "b", "c")
    jobs = 4

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        self.spoken: list[tuple[str, str]] = []
        self.refused = refused

    def speak(self, text: str, speaker: str) -> tuple[np.ndarray, int]:
        if text in self.refused:
            raise DataError("a frog in the throat")
        self.spoken.append((text, speaker))
        samples = np.sin(np.arange(len(text) * 800) * (0.1 + 0.1 * "abc".index(speaker)))
        return (0.0 if text == "silence" else 2.0) * samples, 8000


def rows_of(out: Path) -> list[dict[str, object]]:
    return [row for _, row in read_jsonl(out / "speech.jsonl")]


def test_every_text_once_by_seeded_speakers(tmp_path: Path) -> None:
    texts = [f"question {n}" for n in range(30)] + ["Question 3 ?"]
    voice = Tones()
    counts = synthesise(texts, voice, tmp_path / "out", seed=1, jobs=2)
    assert (counts["recordings"], counts["spoken_now"], counts["rejected"]) == (30, 30, 0)
    rows = rows_of(tmp_path / "out")
    assert [row["text"] for row in rows] == texts[:30]
    assert {row["speaker"] for row in rows} == {"a", "b", "c"}
    samples, rate_hz = soundfile.read(tmp_path / "out" / str(rows[0]["path"]))
    assert (rate_hz, len(samples)) == (16000, 2 * 800 * len(texts[0]))
    assert rows[0]["duration_sec"] == pytest.approx(len(samples) / 16000)
    assert np.abs(samples).max() < 1.0 + 1e-6
    again = Tones()
    (tmp_path / "out" / str(rows[4]["path"])).unlink()
    assert synthesise([*texts, "new"], again, tmp_path / "out", seed=1)["spoken_now"] == 2
    assert sorted(text for text, _ in again.spoken) == ["new", "question 4"]
    assert [row["speaker"] for row in rows_of(tmp_path / "out")][:30] == [row["speaker"] for row in rows]
    synthesise(texts, Tones(), tmp_path / "other", seed=2)
    assert [row["speaker"] for row in rows_of(tmp_path / "other")] != [row["speaker"] for row in rows]


def test_what_cannot_be_spoken_is_named(tmp_path: Path) -> None:
    voice = Tones(("bad",))
    assert synthesise(["good", "bad", "silence", "fine"], voice, tmp_path, max_rejected=0.9)["rejected"] == 2
    reasons = [row["reason"] for _, row in read_jsonl(tmp_path / "rejected.jsonl")]
    assert reasons == ["cannot speak 'bad': a frog in the throat", "cannot speak 'silence': an empty or silent recording"]
    with pytest.raises(DataError, match="not-spoken 2"):
        synthesise(["good", "bad", "silence"], voice, tmp_path / "strict", max_rejected=0.0)
    assert not (tmp_path / "strict/speech.jsonl").exists()
    with pytest.raises(DataError, match="nothing to speak"):
        synthesise([], voice, tmp_path / "none")


def test_an_interruption_costs_only_what_was_being_spoken(tmp_path: Path) -> None:
    class Stopping(Tones):
        jobs = 1

        def speak(self, text: str, speaker: str) -> tuple[np.ndarray, int]:
            if text == "question 5":
                raise KeyboardInterrupt
            return super().speak(text, speaker)

    texts = [f"question {n}" for n in range(10)]
    with pytest.raises(KeyboardInterrupt):
        synthesise(texts, Stopping(), tmp_path)
    kept = len(list(tmp_path.rglob("*.flac")))
    assert kept >= 5
    assert not (tmp_path / "speech.jsonl").exists()
    assert synthesise(texts, Tones(), tmp_path)["spoken_now"] == 10 - kept


SCRIPT = """
import sys, wave
text, out, speaker = sys.argv[1:]
if text == "fail":
    sys.exit("no such word")
with wave.open(out, "wb") as stream:
    stream.setnchannels(2); stream.setsampwidth(2); stream.setframerate(22050)
    stream.writeframes(bytes([0, 32, 0, 32]) * (1000 * len(text)))
"""


def test_any_command_without_a_shell(tmp_path: Path) -> None:
    (tmp_path / "say it.py").write_text(SCRIPT)
    line = f"{sys.executable} '{tmp_path / 'say it.py'}' {{text}} {{out}} {{speaker}}"
    text = "a; touch hacked $(touch hacked) {out} '\""
    samples, rate_hz = CommandVoice(line).speak(text, "x")
    assert (len(samples), rate_hz) == (1000 * len(text), 22050)
    with pytest.raises(DataError, match="ended with status 1: no such word"):
        CommandVoice(line).speak("fail", "x")
    with pytest.raises(UserError, match="`no-such-program`: no such program"):
        CommandVoice("no-such-program {text} {out}").speak("a", "x")
    with pytest.raises(DataError, match=r"wrote no speech\.wav"):
        CommandVoice("true {text} {out}").speak("a", "x")
    with pytest.raises(DataError, match="no audio that libsndfile reads"):
        CommandVoice("cp /etc/hostname {out} {text}").speak("--", "x")


@pytest.mark.parametrize(
    ("line", "speakers", "message"),
    [
        ("say {out}", (), r"\{text\} is not in it"), ("say {text}", (), r"\{out\} is not in it"),
        ("say {text} {out}", ("a", "b"), r"\{speaker\} is not in it"), ("say '{text} {out}", (), "No closing quotation"),
    ],
)
def test_commands_that_cannot_serve(line: str, speakers: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CommandVoice(line, speakers)


@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed")
def test_espeak_speaks_the_same_each_time(tmp_path: Path) -> None:
    voice = EspeakVoice(("m1", "f2"))
    first, rate_hz = voice.speak("天晴吗", "m1")
    assert rate_hz == 22050
    assert 0.3 < len(first) / rate_hz < 3
    assert np.abs(first).max() > 0.05
    assert np.array_equal(first, voice.speak("天晴吗", "m1")[0])
    other = voice.speak("天晴吗", "f2")[0]
    assert len(other) != len(first) or not np.array_equal(other, first)
    with pytest.raises(ConfigError, match="`x9` is not one of m1, m2"):
        EspeakVoice(("m1", "x9"))
    assert synthesise(["有几个人", "什么颜色"], voice, tmp_path, jobs=2)["recordings"] == 2


def test_espnet_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected config\.yaml and one \.pth in it, found 0"):
        EspnetVoice(tmp_path)


@pytest.fixture
def espnet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny FastSpeech2 of three speakers in espnet2's form, with weights by chance."""
    pytest.importorskip("espnet2", reason="espnet is not installed")
    if importlib.util.find_spec("pyworld") is None:  # pitch extraction for training: imported, never called here
        monkeypatch.setitem(sys.modules, "pyworld", types.ModuleType("pyworld"))
    import torch
    import yaml
    from espnet2.tasks.tts import TTSTask

    size = {"adim": 16, "aheads": 2, "elayers": 1, "dlayers": 1, "eunits": 16, "dunits": 16, "postnet_layers": 0, "spks": 3}
    for name in ("duration", "energy", "pitch"):
        size |= {f"{name}_predictor_layers": 1, f"{name}_predictor_chans": 8}
    config = {
        "token_list": ["<blank>", "<unk>", *"天晴吗有几个人", "<sos/eos>"], "token_type": "char", "cleaner": None, "g2p": None,
        "odim": None, "feats_extract": "fbank", "normalize": None, "normalize_conf": {}, "tts": "fastspeech2", "tts_conf": size,
        "feats_extract_conf": {"fs": 16000, "n_fft": 512, "hop_length": 256, "n_mels": 20, "fmin": 80, "fmax": 7600},
        "use_preprocessor": True, "preprocessor": "default", "preprocessor_conf": {}, "bpemodel": None, "init": None,
        "non_linguistic_symbols": None, "model_conf": {},
        **{f"{kind}_{part}": {} if part.endswith("conf") else None for kind in ("pitch", "energy")
           for part in ("extract", "extract_conf", "normalize", "normalize_conf")},
    }  # fmt: skip
    torch.manual_seed(0)
    model = TTSTask.build_model(argparse.Namespace(**config))
    with torch.no_grad():
        model.tts.duration_predictor.linear.bias.fill_(3.0)  # about 20 frames a character
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    return tmp_path


@pytest.mark.slow
def test_espnet_models_speak(espnet_folder: Path, tmp_path: Path) -> None:
    voice = EspnetVoice(espnet_folder)
    assert voice.speakers == ("0", "1", "2")
    first, rate_hz = voice.speak("天晴吗", "1")
    assert rate_hz == 16000
    assert 0.1 < len(first) / rate_hz < 5
    assert len(first) == len(voice.speak("天晴吗", "1")[0])  # Griffin-Lim begins with phases by chance
    with pytest.raises(ConfigError, match=r"--speakers 3: the model has the speakers 0 \.\. 2"):
        EspnetVoice(espnet_folder, ("0", "3"))
    assert synthesise(["天晴吗", "有几个人"], voice, tmp_path / "out", jobs=4)["recordings"] == 2
    (espnet_folder / "model.pth").write_bytes(pickle.dumps({"a": Path("code may hide in it")}))
    with pytest.raises(CheckpointError, match="not a TTS model that espnet2 reads"):
        EspnetVoice(espnet_folder)


def test_texts_to_speak(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [
        {"text": "is it sunny", "roles": ["question"], "count": 1}, {"text": "yes", "roles": ["answer"], "count": 1},
    ])  # fmt: skip
    table = [{"source": "is it sunny", "target": "天晴吗"}, {"source": "yes", "target": "是的"}]
    write_jsonl(tmp_path / "table.jsonl", table)
    assert list(read_spoken_texts(tmp_path / "table.jsonl", tmp_path / "texts.jsonl")) == ["天晴吗"]
    assert list(read_spoken_texts(tmp_path / "table.jsonl")) == ["天晴吗", "是的"]
    assert list(read_spoken_texts(tmp_path / "texts.jsonl")) == ["is it sunny"]
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"odd\.jsonl:1: neither `target` nor `text`"):
        list(read_spoken_texts(tmp_path / "odd.jsonl"))
