"""Media that strangers send: told by their first bytes, measured by their headers, and only then read.

Every file lies under a name of ours in a folder of the request's own, so no name that a client sends is ever a path.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from xllm_speech.base.errors import DataError, SeamError, first_line
from xllm_speech.features.video import OPTIONS
from xllm_speech.serve.config import MIB, Limits
from xllm_speech.serve.fetch import fetch
from xllm_speech.serve.refusal import Refusal, bad_request

KNOWN = {
    "image": "PNG, JPEG, WebP, GIF or BMP",
    "speech": "WAV, FLAC, Ogg, MP3, AAC, M4A or WebM",
    "video": "MP4, MOV, WebM, Matroska or AVI",
}
_PILLOW = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
_SUFFIXES = {
    "image": tuple(_PILLOW), "speech": ("wav", "flac", "ogg", "mp3", "mp4", "webm"), "video": ("mp4", "webm", "avi"),
}
# What FFmpeg may take a file for; a playlist or a script is none of them.
_CONTAINERS = {"mov", "mp4", "m4a", "matroska", "webm", "avi", "ogg", "mp3", "aac", "wav", "flac"}
_CHANNELS = 8
_RATES_HZ = (4_000, 192_000)
_SAMPLES_PER_SEC = 400_000  # a minute of silence in few bytes must not unpack to gigabytes
_FRAMES_PER_SEC = 240  # more than any camera's


@dataclass(frozen=True)
class Sent:
    """A medium as it came. kind: image, speech or video. label: its name in messages, such as `image-1`."""

    kind: str
    label: str
    content: bytes
    param: str | None = None


def suffix_of(content: bytes) -> str | None:
    """The usual suffix of a file by its first bytes; None for what is not served."""
    head = content[:16]
    if head[:4] == b"RIFF":
        return {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return "mp4"
    for start, suffix in (
        (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"fLaC", "flac"),
        (b"OggS", "ogg"), (b"ID3", "mp3"), (b"\x1a\x45\xdf\xa3", "webm"),
    ):
        if head.startswith(start):
            return suffix
    return "mp3" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 else None  # or AAC, which looks alike


def kind_of(path: Path) -> str | None:
    """Kind of a file by its first bytes; of a container that holds sound or pictures alike, by what is in it."""
    with open(path, "rb") as stream:
        suffix = suffix_of(stream.read(16))
    kinds = [kind for kind, suffixes in _SUFFIXES.items() if suffix in suffixes]
    if len(kinds) < 2:
        return kinds[0] if kinds else None
    try:
        with _open(path) as container:
            return "video" if container.streams.video else "speech"
    except Exception:  # broken: told in full when it is read
        return "video"


def from_base64(text: str, most_bytes: int, label: str, param: str | None = None) -> bytes:
    """Bytes of base64; `Refusal` where it is none, or of more than `most_bytes`."""
    if len(text) * 3 // 4 > most_bytes + 3:
        raise _too_large(label, most_bytes, param)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{label}: its base64 is broken", param, "invalid_media") from error


def from_url(url: str, allowed: Collection[str], limits: Limits, label: str, param: str | None = None) -> bytes:
    """Bytes of a data URI, or from an allowed host; `Refusal` otherwise."""
    most = limits.media_mib * MIB
    if url[:5].lower() != "data:":
        return fetch(url, allowed, most, limits.fetch_sec, label)
    header, comma, rest = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise bad_request(f"{label}: expected data:TYPE;base64,DATA", param, "invalid_media")
    return from_base64(rest, most, label, param)


def _too_large(label: str, most_bytes: int, param: str | None) -> Refusal:
    return bad_request(f"{label}: more than {most_bytes // MIB} MiB", param, "media_too_large")


def store(sent: Sent, folder: Path, limits: Limits, most_sec: float | None = None) -> Path:
    """Write a medium below `folder` once it is known to be of its kind and within the limits.

    most_sec: for speech, in place of `limits.audio_sec`.

    Raises:
        Refusal: of another kind, broken, or too large; the text names the medium by its label.
    """
    if len(sent.content) > limits.media_mib * MIB:
        raise _too_large(sent.label, limits.media_mib * MIB, sent.param)
    suffix = suffix_of(sent.content)
    if suffix not in _SUFFIXES[sent.kind]:
        what = {"image": "picture", "speech": "recording", "video": "clip"}[sent.kind]
        raise bad_request(f"{sent.label}: not a {what} that is known here: {KNOWN[sent.kind]}", sent.param, "invalid_media")
    path = folder / f"{sent.label}.{suffix}"
    path.write_bytes(sent.content)
    try:
        match sent.kind:
            case "image":
                _check_picture(path, sent.label, _PILLOW[suffix], limits)
            case "speech":
                path = _check_recording(path, sent.label, limits.audio_sec if most_sec is None else most_sec)
            case _:
                _check_clip(path, sent.label, limits)
    except Refusal as refusal:
        refusal.param = sent.param
        refusal.code = refusal.code or "media_too_large"
        raise
    except Exception as error:  # every decoder has its own exceptions
        raise _broken(error, path, sent) from error
    return path


def read(reader: Any, item: Any, place: Any, sent: Sent) -> Any:
    """What a `MediaReader` makes of a stored medium; `Refusal` names the medium in place of the file."""
    try:
        return reader.read(item, place)
    except (DataError, SeamError) as error:
        raise _broken(error, Path(item.path), sent) from error
    except Exception as error:
        raise _broken(ValueError(type(error).__name__), Path(item.path), sent) from error


def _broken(error: Exception, path: Path, sent: Sent) -> Refusal:
    """The decoder's reason without our folder and file names."""
    reason = first_line(error).replace(f"{path}: ", "").replace(str(path), sent.label).replace(f"{path.parent}/", "")
    while reason.startswith(f"{sent.label}: "):
        reason = reason.removeprefix(f"{sent.label}: ")
    return bad_request(f"{sent.label}: cannot be read ({reason[:200]})", sent.param, "invalid_media")


def _check_picture(path: Path, label: str, format: str, limits: Limits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
        with Image.open(path, formats=[format]) as picture:
            width, height = picture.size
    if width * height > limits.pixels:
        raise bad_request(f"{label}: {width} x {height} pixels, more than {limits.pixels}")


def _check_recording(path: Path, label: str, most_sec: float) -> Path:
    """The file to read: what libsndfile does not know is decoded here, no further than the limit, into a WAV file."""
    try:
        found = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return _decode(path, label, most_sec)
    _check_sound(label, found.samplerate, found.channels)
    if found.frames > most_sec * found.samplerate:
        raise bad_request(f"{label}: {found.frames / found.samplerate:.0f} s long, more than {most_sec:g} s")
    if found.frames == 0:
        raise DataError("holds no audio samples")
    return path


def _check_sound(label: str, rate_hz: int, channels: int) -> None:
    low, high = _RATES_HZ
    if not low <= rate_hz <= high or not 1 <= channels <= _CHANNELS or rate_hz * channels > _SAMPLES_PER_SEC:
        raise bad_request(
            f"{label}: {channels} channels at {rate_hz} Hz; taken are up to {_CHANNELS} at {low} to {high} Hz, together at "
            f"most {_SAMPLES_PER_SEC} samples a second", None, "invalid_media",
        )


def _open(path: Path) -> Any:
    import av

    container = av.open(str(path), options=OPTIONS)
    if not _CONTAINERS & set(container.format.name.split(",")):
        name = container.format.name
        container.close()
        raise DataError(f"a container of kind {name}")
    return container


def _decode(path: Path, label: str, most_sec: float) -> Path:
    import av

    target = path.with_name(f"{label}-decoded.wav")
    with _open(path) as container:
        if not container.streams.audio:
            raise DataError("no audio in it")
        stream = container.streams.audio[0]
        rate_hz, channels = int(stream.rate), len(stream.layout.channels)
        _check_sound(label, rate_hz, channels)
        resampler = av.AudioResampler(format="flt", layout=stream.layout, rate=rate_hz)
        left = int(most_sec * rate_hz)
        with soundfile.SoundFile(target, "w", rate_hz, channels, "FLOAT", format="WAV") as out:
            for frame in container.decode(stream):
                for block in resampler.resample(frame):
                    left -= block.samples
                    if left < 0:
                        raise bad_request(f"{label}: longer than {most_sec:g} s")
                    out.write(np.asarray(block.to_ndarray()).reshape(-1, channels))
    if left == int(most_sec * rate_hz):
        raise DataError("no audio frames")
    path.unlink()
    return target


def _check_clip(path: Path, label: str, limits: Limits) -> None:
    with _open(path) as container:
        if not container.streams.video:
            raise DataError("no video in it")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > limits.pixels:
            raise bad_request(f"{label}: frames of {width} x {height} pixels, more than {limits.pixels}")
        # Packets, not the header's word: a header can say anything.
        count, first, last = 0, None, None
        for packet in container.demux(stream):
            if not packet.size:
                continue
            count += 1
            if packet.pts is not None:
                time_sec = float(packet.pts * stream.time_base)
                first = time_sec if first is None else min(first, time_sec)
                last = time_sec if last is None else max(last, time_sec)
            length_sec = 0.0 if first is None or last is None else last - first
            if length_sec > limits.video_sec or count > _FRAMES_PER_SEC * limits.video_sec:
                raise bad_request(f"{label}: longer than {limits.video_sec:g} s")
            if count * width * height > limits.clip_pixels:
                raise bad_request(
                    f"{label}: {count} or more frames of {width} x {height} pixels, above {limits.clip_pixels} pixels in all"
                )
