"""Media in the page: small, and what they were; a broken one is a DataError that names it."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from xllm_speech.base.errors import DataError
from xllm_speech.report.media import FRAME_SIDE, audio_address, clip_address, image_address


def content_of(address):
    head, _, text = address.partition(",")
    assert head.startswith("data:")
    assert head.endswith(";base64")
    return base64.b64decode(text)


def test_a_picture_is_made_smaller(tmp_path):
    path = tmp_path / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)).save(path)
    shown = Image.open(io.BytesIO(content_of(image_address(path))))
    assert shown.size == (360, 270)
    drawn = tmp_path / "flat.png"
    Image.new("RGB", (64, 64), (200, 10, 10)).save(drawn)
    assert image_address(drawn).startswith("data:image/png")
    assert Image.open(io.BytesIO(content_of(image_address(drawn)))).getpixel((5, 5)) == (200, 10, 10)


def test_frames_of_a_clip_stand_in_their_order(tmp_path):
    from tiny import make_clip

    strip = Image.open(io.BytesIO(content_of(clip_address(make_clip(tmp_path / "a.mp4", 4, (200, 200, 200))))))
    assert strip.size == (4 * FRAME_SIDE + 12, FRAME_SIDE)
    brightness = [strip.getpixel((FRAME_SIDE // 2 + place * (FRAME_SIDE + 4), 60))[0] for place in range(4)]
    assert brightness == sorted(brightness)
    assert brightness[3] - brightness[0] > 100


def test_a_part_of_a_clip(tmp_path):
    from tiny import make_clip

    path = make_clip(tmp_path / "a.mp4", 8, (200, 200, 200))
    whole, part = (Image.open(io.BytesIO(content_of(clip_address(path, start)))).convert("L") for start in (0.0, 1.5))
    assert whole.getpixel((FRAME_SIDE // 2, 60)) + 50 < part.getpixel((FRAME_SIDE // 2, 60))  # the clip grows brighter


def test_a_stretch_of_a_recording(tmp_path):
    path = tmp_path / "a.wav"
    times = np.arange(16000 * 14) / 16000
    soundfile.write(path, np.where(times < 2, 0.0, 0.3 * np.sin(2 * np.pi * 440 * times)), 16000)
    whole, rate_hz = soundfile.read(io.BytesIO(content_of(audio_address(path))))
    assert rate_hz == 16000
    assert len(whole) / rate_hz == pytest.approx(10.0, abs=0.1)  # the longest that is shown
    part, _ = soundfile.read(io.BytesIO(content_of(audio_address(path, 1.0, 2.0))))
    assert len(part) / rate_hz == pytest.approx(2.0, abs=0.1)
    assert np.abs(part[:14000]).max() < 0.05 < np.abs(part[18000:30000]).max()
    spectrum = np.abs(np.fft.rfft(whole[16000 * 4 : 16000 * 5]))
    assert spectrum.argmax() == pytest.approx(440, abs=2)


def test_broken_media_are_named(tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"nothing")
    readers = ((image_address, "unreadable picture"), (clip_address, "unreadable video"), (audio_address, "unreadable audio"))
    for make, what in readers:
        with pytest.raises(DataError, match=f"broken: {what}"):
            make(broken)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    with pytest.raises(DataError, match=r"1\.00 s of audio, wanted from 3\.00 s on"):
        audio_address(path, 3.0)
