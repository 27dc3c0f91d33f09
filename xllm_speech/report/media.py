"""Images, clips and recordings as `data:` addresses, small enough to stand in the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse.cut import Cut
from PIL import Image

from xllm_speech.base.errors import DataError, first_line
from xllm_speech.base.units import SAMPLE_RATE_HZ
from xllm_speech.features.audio import load_file, load_samples
from xllm_speech.features.images import CLIP_MEAN, CLIP_STD, MAX_PIXELS
from xllm_speech.features.video import load_frames

IMAGE_SIDE = 360
FRAME_SIDE = 128
FRAMES = 4
LONGEST_SEC = 10.0


def image_address(path: str | Path) -> str:
    """A picture, its longer side at most IMAGE_SIDE pixels; `DataError` where it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels are too many")
            image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
            return _picture(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's for what is no picture
        raise DataError(f"{path}: unreadable picture ({first_line(error)})") from error


def clip_address(path: str | Path, start_sec: float = 0.0, duration_sec: float | None = None) -> str:
    """Frames of a clip or of a part of it, evenly over its time, side by side; `DataError` where it cannot be read."""
    frames_TCHW = load_frames(path, FRAMES, FRAME_SIDE, start_sec=start_sec, duration_sec=duration_sec)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    pixels_THWC = ((frames_TCHW * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    gap = np.full((FRAME_SIDE, 4, 3), 128, dtype=np.uint8)
    row = [part for frame in pixels_THWC for part in (gap, frame)][1:]
    return _picture(Image.fromarray(np.concatenate(row, axis=1)))


def audio_address(source: str | Path | Cut, offset_sec: float = 0.0, duration_sec: float | None = None) -> str:
    """A recording or a stretch of it, its first LONGEST_SEC seconds, as MP3; `DataError` where it cannot be read."""
    cut = load_file(source) if isinstance(source, str | Path) else source
    length_sec = min(LONGEST_SEC, cut.duration - offset_sec, duration_sec or LONGEST_SEC)
    if length_sec <= 0:
        raise DataError(f"{cut.id}: {cut.duration:.2f} s of audio, wanted from {offset_sec:.2f} s on")
    samples_N = load_samples(cut.truncate(offset=offset_sec, duration=length_sec))
    form = "MP3" if "MP3" in soundfile.available_formats() else "FLAC"
    stream = io.BytesIO()
    soundfile.write(stream, samples_N, SAMPLE_RATE_HZ, format=form)
    return _address("audio/mpeg" if form == "MP3" else "audio/flac", stream.getvalue())


def _picture(image: Image.Image) -> str:
    """The smaller of PNG, for drawings, and JPEG, for photographs."""
    forms = []
    for form, kind, more in (("PNG", "image/png", {"optimize": True}), ("JPEG", "image/jpeg", {"quality": 85})):
        stream = io.BytesIO()
        image.save(stream, form, **more)
        forms.append((len(stream.getvalue()), kind, stream.getvalue()))
    _, kind, content = min(forms)
    return _address(kind, content)


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
