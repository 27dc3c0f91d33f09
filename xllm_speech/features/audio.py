"""Audio of a cut as 16 kHz mono samples, whatever its container, sample rate and channels."""

from __future__ import annotations

import functools
import io
import logging
import re
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, MultiCut, Recording
from lhotse.audio import AudioSource
from lhotse.cut import Cut, MixedCut
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError
from xllm_speech.base.units import SAMPLE_RATE_HZ

logger = logging.getLogger(__name__)

MIX = "mix"


def load_samples(cut: Cut, channel: str | int = MIX) -> np.ndarray:
    """Samples of a cut: float32 [N] in [-1, 1] at 16 kHz.

    channel: what to take from a cut of several channels (`MultiCut`): "mix" averages them, a number takes that channel.
    A `MonoCut` has chosen its channel already. Any other sample rate is resampled, with one word per rate in the log.

    Raises:
        DataError: the recording is missing, unreadable, shorter than declared, or has no such channel; the text names
            the utterance and the file.
    """
    if not cut.has_recording:
        raise DataError(f"{cut.id}: the cut has no recording to read")
    source_rate_hz = cut.sampling_rate
    if source_rate_hz != SAMPLE_RATE_HZ:
        _say_rate(source_rate_hz)
    try:
        samples_CN = _read(cut)
    except Exception as error:  # every audio library has its own exceptions
        samples_CN = _read_again(cut, error)
    samples_N = _choose_channel(cut, samples_CN, channel)
    if not np.isfinite(samples_N).all():
        raise DataError(f"{cut.id}: {audio_path(cut)}: samples that are not numbers (NaN or infinity)")
    return np.ascontiguousarray(samples_N, dtype=np.float32)


def load_file(path: str | Path, utterance_id: str | None = None) -> Cut:
    """A cut over a whole loose file, its id the file's name without suffix unless given; all channels together.

    Raises:
        DataError: missing, empty or unreadable; names the file.
    """
    path = Path(path)
    name = utterance_id or path.stem
    if not path.is_file():
        raise DataError(f"{path}: no such audio file")
    try:
        recording = Recording.from_file(path, recording_id=name)
    except Exception as error:
        try:
            samples_CN, rate_hz = _decode_with_av(path)
        except Exception as second:
            # libsndfile's word where it has one; lhotse's other back-ends only tell what is not installed.
            reason = _short(error if "LibsndfileError" in str(error) else second)
            raise DataError(f"{path}: unreadable audio ({reason})") from error
        channels = list(range(len(samples_CN)))
        count = samples_CN.shape[1]
        recording = Recording(
            id=name, sources=[AudioSource("file", channels, str(path))], sampling_rate=rate_hz, num_samples=count,
            duration=count / rate_hz, channel_ids=channels,
        )
    if recording.num_samples == 0:
        raise DataError(f"{path}: holds no audio samples")
    cut = recording.to_cut()
    return fastcopy(cut, id=name)


def audio_path(cut: Cut) -> str:
    """Where the audio of a cut comes from, for messages: path or command of its recording, else the cut's id."""
    tracks = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    for track in tracks:
        if getattr(track, "has_recording", False):
            source = track.recording.sources[0]
            return str(source.source) if source.type != "memory" else f"recording {track.recording.id} in memory"
    return cut.id


def _read(cut: Cut) -> np.ndarray:
    cut = cut.resample(SAMPLE_RATE_HZ) if cut.sampling_rate != SAMPLE_RATE_HZ else cut
    samples = cut.load_audio(mixed=True) if isinstance(cut, MixedCut) else cut.load_audio()
    if samples is None or samples.size == 0:
        raise DataError(f"{cut.id}: no samples")
    return np.atleast_2d(samples)


def _read_again(cut: Cut, error: Exception) -> np.ndarray:
    """Containers that libsndfile does not know (m4a, webm) through PyAV; anything else is the user's to mend."""
    path = audio_path(cut)
    refused = DataError(f"{cut.id}: {path}: unreadable audio ({_short(error)})")
    if not isinstance(cut, MonoCut | MultiCut) or cut.recording.sources[0].type != "file":
        raise refused from error
    if not Path(path).is_file():
        raise DataError(f"{cut.id}: {path}: no such audio file") from error
    if soundfile_knows(path):
        raise refused from error
    try:
        samples_CN, rate_hz = _decode_with_av(path)
        stream = io.BytesIO()
        soundfile.write(stream, samples_CN.T, rate_hz, format="WAV", subtype="FLOAT")
        source = AudioSource("memory", list(range(len(samples_CN))), stream.getvalue())
        return _read(fastcopy(cut, recording=fastcopy(cut.recording, sources=[source])))
    except Exception as second:
        raise DataError(f"{cut.id}: {path}: unreadable audio ({_short(second)})") from error


def soundfile_knows(path: str | Path) -> bool:
    """Whether libsndfile opens the file: then its verdict on the content is final."""
    try:
        soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return False
    return True


def _decode_with_av(path: str | Path) -> tuple[np.ndarray, int]:
    import av

    blocks = []
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise DataError("no audio stream")
        stream = container.streams.audio[0]
        rate_hz = int(stream.rate)
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate_hz)
        for frame in container.decode(stream):
            blocks += [block.to_ndarray() for block in resampler.resample(frame)]
        blocks += [block.to_ndarray() for block in resampler.resample(None)]
    if not blocks:
        raise DataError("no audio frames")
    return np.concatenate(blocks, axis=1), rate_hz


def _choose_channel(cut: Cut, samples_CN: np.ndarray, channel: str | int) -> np.ndarray:
    if len(samples_CN) == 1:
        return samples_CN[0]
    if channel == MIX:
        return samples_CN.mean(axis=0)
    numbers = list(cut.channel) if isinstance(cut, MultiCut) else list(range(len(samples_CN)))
    if int(channel) not in numbers:
        raise DataError(f"{cut.id}: {audio_path(cut)}: has channels {numbers}, not channel {channel}")
    return samples_CN[numbers.index(int(channel))]


@functools.cache
def _say_rate(rate_hz: int) -> None:
    from torch.utils.data import get_worker_info

    if get_worker_info() is None:
        logger.info("audio at %d Hz is resampled to %d Hz", rate_hz, SAMPLE_RATE_HZ)


def _short(error: Exception) -> str:
    """The one line of an audio library's message that helps."""
    text = str(error)
    declared = re.search(r"diff=(-?\d+).*?num_samples=(\d+)", text, re.DOTALL)
    if declared:
        return f"{declared[2]} samples declared, {abs(int(declared[1]))} of them missing or surplus: a truncated file?"
    reason = re.search(r"LibsndfileError'>: (?:Error opening '[^']*': )?([^\n]+)", text)
    if reason:
        return reason[1].strip().rstrip(".")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
