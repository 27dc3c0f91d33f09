from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, MultiCut, Recording

from xllm_speech.base.errors import DataError
from xllm_speech.features.audio import load_file, load_samples


def tone(seconds: float, rate_hz: int, pitch_hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def peak_hz(samples: np.ndarray, rate_hz: int = 16000) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate_hz / len(samples))


@pytest.mark.parametrize(("suffix", "rate_hz"), [
    ("wav", 16000), ("wav", 8000), ("flac", 44100), ("ogg", 48000), ("mp3", 22050), ("wav", 11025),
])
def test_any_container_and_rate_keeps_time_and_pitch(tmp_path: Path, suffix: str, rate_hz: int) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(2, rate_hz), rate_hz)
    samples = load_samples(load_file(path))
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(32000, abs=1)
    assert peak_hz(samples) == pytest.approx(440, abs=1)
    middle = samples[4000:28000]
    assert float(np.sqrt(np.mean(middle**2))) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


def test_real_recordings(shared_data: Path) -> None:
    files = sorted((shared_data / "misc_zh" / "wav").iterdir())
    assert len(files) >= 19
    for path in files:
        info = soundfile.info(path)
        samples = load_samples(load_file(path))
        assert len(samples) == pytest.approx(info.frames * 16000 / info.samplerate, abs=1)
        assert 1e-4 < np.sqrt(np.mean(samples**2)) < 1


def test_m4a_which_libsndfile_does_not_know(tmp_path: Path) -> None:
    import av

    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(2, 44100)[None], format="fltp", layout="mono")
        frame.rate = 44100
        fifo = av.AudioFifo()
        fifo.write(frame)
        while block := fifo.read(1024, partial=True):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    cut = load_file(path)
    samples = load_samples(cut)
    assert len(samples) == pytest.approx(32000, abs=2100)  # AAC adds its own padding
    assert peak_hz(samples) == pytest.approx(440, abs=1)
    part = load_samples(cut.truncate(offset=0.5, duration=1.0))
    np.testing.assert_allclose(part[2000:14000], samples[10000:22000], atol=2e-3)
    assert peak_hz(load_samples(cut.perturb_speed(1.1))) == pytest.approx(484, abs=2)


@pytest.fixture
def stereo(tmp_path: Path) -> MultiCut:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(1, 16000, 300), tone(1, 16000, 900)], 1), 16000, subtype="FLOAT")
    cut = load_file(path)
    assert isinstance(cut, MultiCut)
    return cut


def test_channels_are_mixed_or_chosen(stereo: MultiCut) -> None:
    left, right = load_samples(stereo, 0), load_samples(stereo, "1")
    assert peak_hz(left) == pytest.approx(300, abs=1)
    assert peak_hz(right) == pytest.approx(900, abs=1)
    np.testing.assert_allclose(load_samples(stereo, "mix"), (left + right) / 2, atol=1e-6)
    mono = MonoCut(id="m", start=0.25, duration=0.5, channel=1, recording=stereo.recording)
    np.testing.assert_allclose(load_samples(mono, 0), right[4000:12000], atol=1e-6)  # a MonoCut has chosen
    with pytest.raises(DataError, match=r"channels \[0, 1\], not channel 2"):
        load_samples(stereo, 2)


def test_resampling_is_said_once_per_rate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.1, 12345), 12345)
    with caplog.at_level(logging.INFO, logger="xllm_speech"):
        for _ in range(3):
            load_samples(load_file(path))
    assert sum("12345" in record.message for record in caplog.records) == 1


def test_broken_files_name_themselves_in_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.flac"
    soundfile.write(good, np.random.default_rng(0).uniform(-0.5, 0.5, 32000), 16000)
    truncated = tmp_path / "truncated.flac"
    truncated.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    garbage = tmp_path / "garbage.wav"
    garbage.write_bytes(b"no sound " * 99)
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    for name in ("garbage.wav", "empty.wav", "nothing.wav", "missing.wav"):
        with pytest.raises(DataError, match=name) as caught:
            load_file(tmp_path / name)
        assert "\n" not in str(caught.value)
    cut = load_file(truncated)  # its header still promises everything
    with pytest.raises(DataError, match=r"truncated: .*truncated\.flac.*(samples declared|unreadable audio)") as caught:
        load_samples(cut)
    assert "\n" not in str(caught.value)
    cut = load_file(good)
    good.unlink()
    with pytest.raises(DataError, match="no such"):
        load_samples(cut)


def test_samples_that_are_not_numbers(tmp_path: Path) -> None:
    samples = tone(0.5, 16000)
    samples[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match="not numbers"):
        load_samples(load_file(tmp_path / "nan.wav"))


def test_recording_shorter_than_its_manifest_says(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)
    recording = Recording.from_file(tmp_path / "a.wav")
    recording.num_samples, recording.duration = 32000, 2.0
    cut = MonoCut(id="u", start=0, duration=2.0, channel=0, recording=recording)
    with pytest.raises(DataError, match="u: "):
        load_samples(cut)
