from __future__ import annotations

import wave
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from xllm_speech.base.errors import DataError
from xllm_speech.features import images
from xllm_speech.features.images import CLIP_MEAN, CLIP_STD
from xllm_speech.features.video import choose_frames, load_frames

GREY_STEP = 6  # frame n of a made clip is all of grey 6 n


def make_clip(
    path: Path, count: int = 40, codec: str = "libx264", size: int = 32, times_ms: Sequence[int] | None = None,
    b_frames: int = 0, gop: int = 12, options: dict[str, str] | None = None,
) -> Path:
    """`count` frames, 10 a second or at `times_ms`, each of which tells its number by its grey."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        if codec == "libx264":
            stream.options = {"x264-params": f"bframes={b_frames}:b-adapt=0:keyint={gop}:scenecut=0:log-level=none"}
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            grey = np.full((size, size, 3), GREY_STEP * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(frames_TCHW: torch.Tensor) -> list[int]:
    """Which frames of a made clip these are."""
    greys_T = 255 * (frames_TCHW[:, 0].mean((1, 2)) * CLIP_STD[0] + CLIP_MEAN[0])
    return [round(float(grey) / GREY_STEP) for grey in greys_T]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.h264", "clip.webm"])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 40])
def test_uniform_over_the_whole_clip(tmp_path: Path, name: str, count: int) -> None:
    made = make_clip(tmp_path / name, codec="libvpx" if name.endswith("webm") else "libx264", b_frames=2)
    frames = load_frames(made, count, 8)
    assert frames.shape == (count, 3, 8, 8)
    assert frames.dtype == torch.float32
    assert numbers(frames) == [40 * (2 * part + 1) // (2 * count) for part in range(count)]


@pytest.mark.parametrize("count", [2, 5, 9])
def test_variable_frame_rate(tmp_path: Path, count: int) -> None:
    gaps = np.random.default_rng(count).integers(20, 700, 40)
    times = [int(time) for time in np.cumsum(gaps) - gaps[0]]
    path = make_clip(tmp_path / "clip.mkv", times_ms=times)
    with av.open(str(path)) as container:
        shown = [frame.pts for frame in container.decode(video=0)]
    assert shown == times
    end = times[-1] + 100  # a frame of 10 a second
    taken: list[int] = []
    for part in range(count):  # step through the clip and see what is on the screen
        middle = (part + 0.5) / count * end
        on_screen = max(number for number, time in enumerate(times) if time <= middle)
        assert on_screen not in taken
        taken.append(on_screen)
    assert numbers(load_frames(path, count, 8)) == taken


@pytest.mark.parametrize("count", [3, 4, 100])
def test_short_clip_gives_all_and_repeats_none(tmp_path: Path, count: int) -> None:
    assert numbers(load_frames(make_clip(tmp_path / "clip.mp4", 3), count, 8)) == [0, 1, 2]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_frames_of_a_part_are_those_shown_in_it(tmp_path: Path, name: str) -> None:
    made = make_clip(tmp_path / name, b_frames=2)  # 40 frames in 4 s, a key frame every 12
    assert numbers(load_frames(made, 4, 8, start_sec=2.0, duration_sec=0.8)) == [21, 23, 25, 27]
    assert numbers(load_frames(made, 2, 8, start_sec=1.0, duration_sec=2.0)) == [15, 25]
    assert numbers(load_frames(made, 8, 8, start_sec=3.8)) == [38, 39]  # to its end, and no frame twice
    assert numbers(load_frames(made, 3, 8, start_sec=1.25, duration_sec=0.01)) == [12]  # less than a frame: what is shown then
    assert numbers(load_frames(made, 2, 8, start_sec=3.0, duration_sec=9.0)) == [32, 37]  # what is there of it
    with pytest.raises(DataError, match=r"clip.*4\.00 s long, the part begins at 4\.50 s"):
        load_frames(made, 2, 8, start_sec=4.5, duration_sec=1.0)


def test_a_part_of_a_clip_without_times_is_counted_by_its_usual_rate(tmp_path: Path) -> None:
    assert numbers(load_frames(make_clip(tmp_path / "clip.h264"), 2, 8, start_sec=0.8, duration_sec=0.4)) == [22, 27]


def test_long_frames_do_not_come_twice() -> None:
    # The second frame fills four of five stretches.
    assert choose_frames([0, 10, 90, 92, 94, 96, 98], 100, 5) == [1, 2, 3, 4, 5]
    assert choose_frames([0, 1, 2, 3, 4, 5], 1000, 4) == [2, 3, 4, 5]
    assert choose_frames([-7], 3, 4) == [0]


@pytest.mark.parametrize("seed", range(30))
def test_choice_is_rising_and_within_the_clip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = sorted(rng.choice(1000, int(rng.integers(1, 60)), replace=False).tolist())
    count = int(rng.integers(1, 30))
    chosen = choose_frames(times, times[-1] + int(rng.integers(1, 50)), count)
    assert len(chosen) == min(count, len(times))
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < len(times)


class Counting:
    """An open clip that counts the frames it decodes."""

    def __init__(self, container: Any, decoded: list[int]) -> None:
        self.container, self.decoded = container, decoded

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *reason: object) -> None:
        self.container.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def decode(self, stream: Any) -> Iterator[Any]:
        for frame in self.container.decode(stream):
            self.decoded[0] += 1
            yield frame


def test_long_clip_is_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "clip.mp4", count=40, gop=4, b_frames=2)
    decoded, really_open = [0], av.open
    monkeypatch.setattr(av, "open", lambda *args, **more: Counting(really_open(*args, **more), decoded))
    assert numbers(load_frames(path, 2, 8)) == [10, 30]
    assert decoded[0] <= 8


def test_rotation_is_honoured(shared_data: Path) -> None:
    path = shared_data / "videos" / "video_90.mov"
    with av.open(str(path)) as container:
        lying = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert lying.shape[:2] == (320, 568)
    found = load_frames(path, 3, 8, center_crop=False)
    assert found.shape == (3, 3, 8, 8)
    blocks = lying.reshape(8, 40, 8, 71, 3).mean((1, 3)) / 255  # 320 = 8 x 40, 568 = 8 x 71
    colours = found[0].permute(1, 2, 0).numpy() * CLIP_STD + CLIP_MEAN
    far = [np.abs(np.rot90(blocks, -turns) - colours).mean() for turns in range(4)]  # clockwise
    assert far[1] < 0.03
    assert min(far[0], *far[2:]) > 0.06


@pytest.mark.parametrize(("name", "total"), [("big_buck_bunny_small.mp4", 132), ("nasa_13013.mp4", 325)])
def test_real_clips(shared_data: Path, name: str, total: int) -> None:
    path = shared_data / "videos" / name
    found = load_frames(path, 4, 64)
    with av.open(str(path)) as container:
        decoded = [frame.to_image() for frame in container.decode(video=0)]
    assert len(decoded) == total
    expected = [images.normalise_pixels(decoded[total * (2 * part + 1) // 8], 64) for part in range(4)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_corrupted_real_clip(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"corrupted\.mp4: unreadable video \(Invalid data"):
        load_frames(shared_data / "videos" / "corrupted.mp4", 4, 64)


def test_truncated_clips(tmp_path: Path) -> None:
    for name, share, words in (
        ("plain.mp4", 0.25, "unreadable video"), ("front.mp4", 0.9, r"truncated at frame \d+"),
        ("clip.mkv", 0.7, r"truncated: \d\.\d+ of 4\.\d+ s"),
    ):
        options = {"movflags": "faststart"} if name == "front.mp4" else {}
        path = make_clip(tmp_path / name, options=options)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(DataError, match=f"{name}: {words}"):
            load_frames(path, 4, 8)


def test_truncated_between_two_frames(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: sum(places[29])])
    with pytest.raises(DataError, match=r"clip\.mp4: truncated: 30 of 40 frames"):
        load_frames(path, 4, 8)


def test_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("only words\n" * 99)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as stream:
        stream.setparams((1, 2, 16000, 0, "NONE", ""))
        stream.writeframes(bytes(3200))
    for name, words in (
        ("notes.txt", "holds no video"), ("tone.wav", "holds no video"), ("empty.mp4", "unreadable video"),
        ("list.mp4", "unreadable video"), ("absent.mp4", "no such video"), (".", "no such video"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            load_frames(tmp_path / name, 4, 8)
        assert str(tmp_path / name) in str(caught.value)


def test_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="holds no video"):
        load_frames(path, 4, 8)


def test_huge_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "clip.mp4", 2)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match=r"clip\.mp4: 32 x 32 pixels, more than 1000"):
        load_frames(path, 4, 8)
