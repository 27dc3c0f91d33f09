"""Where samples come from: pipes, files, and a microphone that a stand-in for sounddevice plays."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile

from xllm_speech import CifAsr
from xllm_speech.base.errors import DataError, MissingDependency
from xllm_speech.infer import stream_sources
from xllm_speech.infer.stream_sources import read_microphone, read_pcm, read_recording, until_interrupted
from xllm_speech.infer.streaming import StreamingRecogniser, stream_recordings

MICROPHONE = """
import os, signal
import numpy as np

class PortAudioError(Exception):
    pass

class InputStream:
    def __init__(self, rate_hz, block, device, channels, kind):
        assert (rate_hz, device, channels, kind) == (16000, "Stand-in", 1, "float32")
        self.samples, self.position = np.load(os.environ["SAMPLES"]), 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        print("closed", flush=True)

    def read(self, count):
        block = self.samples[self.position : self.position + count]
        self.position += count
        if self.position == len(self.samples):
            os.kill(os.getpid(), signal.SIGINT)
        assert len(block) == count, "read on after the interruption"
        return block[:, None], 2 * count < self.position < 5 * count
"""


def make_noise(seconds):
    return (0.1 * np.random.default_rng(0).standard_normal(round(16000 * seconds))).astype(np.float32)


def start(*words, **more):
    command = [sys.executable, "-m", "xllm_speech.bin.main", "stream", *map(str, words), "--silence-sec", "0", "--threads", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_a_pipe_is_recognised_while_it_is_written(chunked_dir, tmp_path):
    raw = (make_noise(5.0) * 32767).astype("<i2")
    soundfile.write(tmp_path / "talk.wav", raw, 16000)
    (whole,) = CifAsr.from_pretrained(chunked_dir).transcribe(tmp_path / "talk.wav")
    with start("--model", chunked_dir, "-", "--partial", stdin=subprocess.PIPE) as process:
        process.stdin.write(raw[:48001].tobytes()[:-1])  # a sample may come in two pieces
        process.stdin.flush()
        name, text, dots = process.stdout.readline().decode().split()  # before the rest is there
        assert (name, dots) == ("stdin-00001", "...")
        assert whole.text.startswith(text)
        process.stdin.write(raw.tobytes()[96001:])
        process.stdin.close()
        lines = process.stdout.read().decode().splitlines()
        assert process.wait() == 0, process.stderr.read().decode()
    assert lines[-1] == f"stdin-00001 {whole.text}"


def test_a_microphone_is_recognised_until_it_is_interrupted(chunked_dir, tmp_path):
    samples = make_noise(3.2)
    soundfile.write(tmp_path / "talk.wav", samples, 16000, subtype="FLOAT")
    np.save(tmp_path / "samples.npy", samples)
    (tmp_path / "sounddevice.py").write_text(MICROPHONE)
    (whole,) = CifAsr.from_pretrained(chunked_dir).transcribe(tmp_path / "talk.wav")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "SAMPLES": str(tmp_path / "samples.npy")}
    with start("--model", chunked_dir, "--microphone", "Stand-in", env=environment) as process:
        out, told = (text.decode() for text in process.communicate(timeout=120))
    assert process.returncode == 0, told
    assert sorted(out.splitlines()) == ["closed", f"microphone-00001 {whole.text}"]
    assert told.count("samples were lost") == 1
    assert "Traceback" not in told


def stand_in(error):
    def refuse(*options):
        assert options[2] in (None, 7, "usb")
        raise error

    return types.SimpleNamespace(InputStream=refuse, PortAudioError=type("PortAudioError", (Exception,), {}))


def test_a_microphone_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependency, match=r"pip install sounddevice.*libportaudio2.*arecord"):
        next(read_microphone())
    module = stand_in(ValueError("No input device matching 'usb'"))
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with pytest.raises(DataError, match=r"microphone usb: No input device matching 'usb'; `python -m sounddevice` lists"):
        next(read_microphone("usb"))
    module = stand_in(None)
    module.InputStream = stand_in(module.PortAudioError("Error querying device -1\nmore")).InputStream
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    for name, told in ((None, r"\(default\)"), ("7", "7")):
        with pytest.raises(DataError, match=rf"microphone {told}: Error querying device -1;"):
            next(read_microphone(name))


def test_ctrl_c_is_noted_once_and_then_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with until_interrupted() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_came_before_a_broken_end_is_recognised(chunked_dir, tmp_path):
    raw = (make_noise(2.0) * 32767).astype("<i2")
    soundfile.write(tmp_path / "talk.wav", raw, 16000)
    model = CifAsr.from_pretrained(chunked_dir)
    (whole,) = model.transcribe(tmp_path / "talk.wav")
    updates = stream_recordings(StreamingRecogniser(model), read_pcm(io.BytesIO(raw.tobytes() + b"1")))
    found = []
    with pytest.raises(DataError, match="half a sample"):
        found.extend(updates)
    assert (found[-1].final, found[-1].hypothesis.text) == (True, whole.text)
    *_, last = stream_recordings(StreamingRecogniser(model), read_pcm(io.BytesIO(raw.tobytes())), lambda: True)
    assert last.heard_sec < 1
    with pytest.raises(DataError, match="no audio arrived"):
        list(stream_recordings(StreamingRecogniser(model), read_pcm(io.BytesIO(b""))))


def test_samples_are_those_of_the_source(tmp_path):
    samples = make_noise(1.0)
    raw = (samples * 32767).astype("<i2")

    class Trickle(io.BytesIO):
        def read1(self, size=-1):
            return self.read(min(size, 77))  # odd numbers of bytes

    found = np.concatenate(list(read_pcm(Trickle(raw.tobytes()))))
    np.testing.assert_array_equal(found, raw.astype(np.float32) / 32768)
    with pytest.raises(DataError, match="half a sample"):
        list(read_pcm(io.BytesIO(b"123")))
    with pytest.raises(DataError, match="header"):
        list(read_pcm(io.BytesIO(b"RIFF1234")))
    soundfile.write(tmp_path / "a.wav", make_noise(12.0), 16000, subtype="FLOAT")
    np.testing.assert_allclose(np.concatenate(list(read_recording(tmp_path / "a.wav"))), make_noise(12.0), atol=1e-6)
    soundfile.write(tmp_path / "b.wav", samples[::2], 8000)
    assert sum(map(len, read_recording(tmp_path / "b.wav"))) == 16000
    assert stream_sources.BLOCK_SEC <= 0.2
