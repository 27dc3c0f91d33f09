"""Frames of a clip as normalised pixel tensors (system.md section 2): T frames, uniformly over the clip or a part of it."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from xllm_speech.base.errors import DataError, first_line
from xllm_speech.features.images import normalise_pixels, refuse_large

# Some kinds of text file are lists of what to play from the network; a clip is a file.
OPTIONS = {"protocol_whitelist": "file"}
# Of the duration that a stream declares, what must be there.
LEAST_SHARE = 0.9
USUAL_RATE_HZ = 25  # of frames that tell neither their times nor their rate


@dataclass(frozen=True)
class _Index:
    """The frames of a clip without their pictures, in order of time.

    times: when each is shown, in units of `unit_sec` seconds; end: until when the last is. keys: times of those that
    decoding can start at; None where frames are told by their number only.
    """

    times: list[int]
    end: int
    keys: list[int] | None
    unit_sec: float

    def choose(self, path: Path, frames: int, start_sec: float, duration_sec: float | None) -> list[int]:
        """Which frames stand for the part from `start_sec` after the clip's begin on, for `duration_sec` or to its end."""
        length_sec = (self.end - self.times[0]) * self.unit_sec
        if start_sec >= length_sec:
            raise DataError(f"{path}: {length_sec:.2f} s long, the part begins at {start_sec:.2f} s")
        begin = self.times[0] + round(start_sec / self.unit_sec)
        end = self.end if duration_sec is None else min(self.end, begin + max(1, round(duration_sec / self.unit_sec)))
        first = bisect.bisect_right(self.times, begin) - 1
        times = self.times[first : max(first + 1, bisect.bisect_left(self.times, end))]
        return [first + place for place in choose_frames([begin, *times[1:]], end, frames)]


class _FrameMissing(Exception):
    """A frame that the file lists does not come out of the decoder."""


def load_frames(
    path: str | Path, frames: int, size: int, center_crop: bool = True, start_sec: float = 0.0,
    duration_sec: float | None = None,
) -> torch.Tensor:
    """Video file -> float32 [T, 3, size, size], RGB, CLIP-normalised, upright as its metadata says.

    Of the clip only what is shown from `start_sec` on, for `duration_sec` or to its end, is taken. That is parted into
    `frames` stretches of equal duration, and the frame shown in the middle of each stands for it, or its neighbour where that
    one is taken already. What has fewer frames gives all it has: T <= frames. Only one decoded frame is in memory at a time,
    and stretches between those wanted are passed over where the file allows it.

    Raises:
        DataError: missing, not a video, truncated, broken, of frames of more than MAX_PIXELS pixels, or it ends before the
            part begins; names the file.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such video")

    def load(index: _Index) -> list[torch.Tensor]:
        return _load(path, index, index.choose(path, frames, start_sec, duration_sec), size, center_crop)

    try:
        try:
            found = load(_list_packets(path))
        except _FrameMissing:  # some codecs list what is never shown, or do not say when
            found = load(_list_frames(path))
    except (av.FFmpegError, _FrameMissing) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{path}: unreadable video ({reason})") from error
    return torch.stack(found)


def choose_frames(times: Sequence[int], end: int, count: int) -> list[int]:
    """Which of the frames shown at `times` (rising; the last until `end`) stand for a clip: `count`, or all if fewer.

    The one shown in the middle of each of `count` equal stretches; where one frame fills several stretches, its
    neighbours stand for the others, so that none is taken twice.
    """
    total = len(times)
    if total <= count:
        return list(range(total))
    chosen: list[int] = []
    for part in range(count):
        middle = times[0] + ((2 * part + 1) * (end - times[0])) // (2 * count)
        shown = bisect.bisect_right(times, middle) - 1
        chosen.append(max(shown, chosen[-1] + 1 if chosen else 0))
    return [min(place, total - count + part) for part, place in enumerate(chosen)]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, video stream), at the start of the file: some files cannot be wound back to it."""
    import av
    from av.stream import Disposition

    with av.open(str(path), options=OPTIONS) as container:
        # The cover of a song is a video stream too, and any text is one to a player of terminal art.
        streams = [
            stream for stream in container.streams.video
            if not stream.disposition & Disposition.attached_pic and container.format.name != "tty"
        ]
        if not streams:
            raise DataError(f"{path}: holds no video")
        codec = streams[0].codec_context
        codec.thread_count = 1  # there are loading processes enough
        refuse_large(path, codec.width, codec.height)
        yield container, streams[0]


def _list_packets(path: Path) -> _Index:
    """Read the clip to its end without decoding it."""
    shown: list[tuple[int, int]] = []  # time, duration
    keys: list[int] = []
    count = 0
    with _open(path) as (container, stream):
        for packet in container.demux(stream):
            if not packet.size:
                continue
            count += 1
            if packet.is_corrupt:
                raise DataError(f"{path}: truncated at frame {count}")
            if packet.pts is None:
                raise _FrameMissing("frames without times")
            if not packet.is_discard:  # cut away by an edit of the file
                shown.append((packet.pts, packet.duration or 0))
                if packet.is_keyframe:
                    keys.append(packet.pts)
        declared, declared_sec, base = stream.frames, _declared_sec(stream), stream.time_base
    if count < declared:
        raise DataError(f"{path}: truncated: {count} of {declared} frames are there")
    if not shown:
        raise DataError(f"{path}: holds no frame")
    shown.sort()
    times = [time for time, _ in shown]
    if any(later == earlier for earlier, later in itertools.pairwise(times)):
        raise _FrameMissing("two frames at one time")
    end = times[-1] + (shown[-1][1] or _usual_gap(times))
    found_sec = float((end - times[0]) * base)
    if found_sec < LEAST_SHARE * declared_sec:
        raise DataError(f"{path}: truncated: {found_sec:.2f} of {declared_sec:.2f} s are there")
    return _Index(times, end, sorted(keys), float(base))


def _declared_sec(stream: Any) -> float:
    """What Matroska says about the duration of a stream, which says nothing of its frames; 0 in other files."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) if match else 0.0


def _usual_gap(times: Sequence[int]) -> int:
    return (times[-1] - times[0]) // max(1, len(times) - 1) or 1


def _list_frames(path: Path) -> _Index:
    """Decode the clip to its end, to count its frames."""
    with _open(path) as (container, stream):
        times = [frame.pts for frame in container.decode(stream)]
        unit_sec = float(stream.time_base)
        rate_hz = float(stream.average_rate or stream.guessed_rate or USUAL_RATE_HZ)
    if not times:
        raise DataError(f"{path}: holds no frame")
    if any(time is None for time in times) or any(later <= earlier for earlier, later in itertools.pairwise(times)):
        times, unit_sec = list(range(len(times))), 1 / rate_hz
    return _Index(times, times[-1] + _usual_gap(times), None, unit_sec)


def _load(path: Path, index: _Index, wanted: list[int], size: int, center_crop: bool) -> list[torch.Tensor]:
    pixels: list[torch.Tensor] = []
    with _open(path) as (container, stream):
        found = _by_number(container, stream, wanted) if index.keys is None else _by_time(container, stream, index, wanted)
        for frame in found:
            if frame.is_corrupt:
                raise DataError(f"{path}: broken at frame {wanted[len(pixels)]}")
            refuse_large(path, frame.width, frame.height)
            image = Image.fromarray(frame.reformat(format="rgb24", threads=1).to_ndarray())
            if frame.rotation:
                image = image.rotate(frame.rotation, expand=True)
            pixels.append(normalise_pixels(image, size, center_crop))
    return pixels


def _by_number(container: Any, stream: Any, wanted: Sequence[int]) -> Iterator[Any]:
    places = set(wanted)
    return (frame for place, frame in enumerate(container.decode(stream)) if place in places)


def _by_time(container: Any, stream: Any, index: _Index, wanted: Sequence[int]) -> Iterator[Any]:
    """The wanted frames, decoding from the nearest key frame where that is ahead of where decoding stands."""
    assert index.keys is not None
    here = index.times[0]
    decoder = container.decode(stream)
    for place in wanted:
        time = index.times[place]
        ahead = bisect.bisect_right(index.keys, time) - 1
        if ahead >= 0 and index.keys[ahead] > here:
            container.seek(index.keys[ahead], stream=stream)
            decoder = container.decode(stream)
        frame = next((frame for frame in decoder if frame.pts is None or frame.pts >= time), None)
        if frame is None or frame.pts != time:
            raise _FrameMissing(f"no frame at {float(time * stream.time_base):.2f} s")
        here = time
        yield frame
