"""Media readers: what each makes of good items, and what a bad item costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import corpora
import numpy as np
import pytest
import soundfile
import torch
from lhotse.cut import Cut
from PIL import Image

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.datasets.conversation_config import ImageAugmentConfig
from xllm_speech.datasets.media import all_text, build_readers, load_media
from xllm_speech.datasets.readers import (
    AudioReader,
    ClipReader,
    ImageReader,
    Place,
    SpeechReader,
    TerminalReader,
    UnitReader,
)
from xllm_speech.datasets.units import UnitCache, UnitKey, Units, finish_cache, hash_manifest, speed_id, write_shard
from xllm_speech.features.fbank import load_features
from xllm_speech.features.images import load_pixels
from xllm_speech.features.video import load_frames
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.cuts import save_cuts
from xllm_speech.manifests.videos import prepare_videos
from xllm_speech.records import ClipBatch, Conversation, ConversationItem, FbankBatch, Memory, Message, PixelBatch

WIDTH = 4
MakeCuts = Callable[[int], list[Cut]]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 24)) -> str:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)).save(path)
    return str(path)


def clip(path: Path, frames: int) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            grey = np.full((32, 32, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def unit_cache(folder: Path, counts: dict[str, int], speeds: tuple[float, ...] = (1.0, 0.9)) -> UnitCache:
    """A cache that holds `counts` units of each utterance at each speed; each unit tells the speed."""
    (folder / "shards").mkdir(parents=True)
    manifest = folder / "cuts.jsonl"
    manifest.write_text("{}\n")
    made = {
        speed_id(name, speed): Units(torch.full((n, WIDTH), speed), torch.zeros(n), torch.ones(n), float(n))
        for speed in speeds for name, n in counts.items()
    }
    rows, sizes = write_shard(folder / "shards", "0", made.items())
    key, manifests = UnitKey("a" * 64, {}, 0.5, "mix"), [(str(manifest), hash_manifest(manifest))]
    finish_cache(folder, key, rows, {"0": sizes}, WIDTH, "float32", speeds, manifests, {}, {})
    return UnitCache.open(folder, key)


def ask(name: str, *items: ConversationItem, answer: str = "好", task: str = "vl") -> Conversation:
    reply = Message("assistant", (ConversationItem("text", text=answer),))
    return Conversation(name, task, (Message("user", items), reply))


def image(path: str) -> ConversationItem:
    return ConversationItem("image", path=path)


def test_order_of_conversations_messages_and_items(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(4)]
    reply = Message("assistant", (ConversationItem("text", text="好"),))
    several = Conversation("c2", "vl", (
        Message("user", (image(paths[3]), ConversationItem("text", text="看"), image(paths[0]))), reply,
        Message("user", (image(paths[2]),)), reply,
    ))
    batch = load_media([ask("c1", image(paths[1])), several, ask("c3", ConversationItem("text", text="问"))],
                       build_readers(["image"], 16, 4))
    assert batch.ids == ["c1", "c2", "c3"]
    assert batch.skipped == []
    assert batch.seconds == 0
    found = batch.media["image"]
    assert isinstance(found, PixelBatch)
    assert bool(found.present_B.all())
    torch.testing.assert_close(found.x_BCHW, torch.stack([load_pixels(paths[place], 16) for place in (1, 3, 0, 2)]))


def test_bad_item_costs_its_conversation_and_nothing_else(tmp_path: Path) -> None:
    good, wav = picture(tmp_path / "good.png"), tmp_path / "bad.wav"
    (tmp_path / "bad.png").write_bytes(Path(good).read_bytes()[:200])
    wav.write_bytes(b"no sound")
    batch = load_media(
        [
            ask("cut short", image(good), image(str(tmp_path / "bad.png"))), ask("fine", image(good)),
            ask("absent", image(str(tmp_path / "none.png"))), ask("odd", ConversationItem("video", path="x.mp4")),
            ask("deaf", image(good), ConversationItem("speech", path=str(wav))),
        ],
        build_readers(["image", "speech"], 16, 4),
    )
    assert batch.ids == ["fine"]
    assert batch.media.keys() == {"image"}
    assert len(batch.media["image"].present_B) == 1
    reasons = dict(batch.skipped)
    assert list(reasons) == ["cut short", "absent", "odd", "deaf"]
    assert "bad.png: unreadable picture" in reasons["cut short"]
    assert "none.png: no such picture" in reasons["absent"]
    assert reasons["odd"] == "a video item, which this model has no interface for; it has image, speech"
    assert "bad.wav: unreadable audio" in reasons["deaf"]


def test_nothing_left(tmp_path: Path) -> None:
    batch = load_media([ask("c", image(str(tmp_path / "none.png")))], build_readers(["image"], 16, 4))
    assert (batch.conversations, batch.media, len(batch.skipped)) == ([], {}, 1)


def test_clips_of_different_length(tmp_path: Path) -> None:
    short, long = clip(tmp_path / "short.mp4", 2), clip(tmp_path / "long.mp4", 6)
    videos = [ask(name, ConversationItem("video", path=path)) for name, path in (("a", long), ("b", short), ("c", long))]
    found = load_media(videos, build_readers(["video"], 16, 3)).media["video"]
    assert isinstance(found, ClipBatch)
    assert found.counts_N.tolist() == [3, 2, 3]
    torch.testing.assert_close(found.frames.x_BCHW[3:5], load_frames(short, 3, 16))


def test_events_of_a_clip_show_what_happens_in_them(tmp_path: Path) -> None:
    annotations = corpora.activitynet(tmp_path)
    prepare_videos("activitynet", [annotations], [tmp_path / "videos"], tmp_path / "out", jobs=1, events=True)
    manifest = tmp_path / "out/val/conversations.jsonl.gz"
    told = {c.messages[1].items[0].text: c for c in read_conversations(manifest)}
    whole_TCHW = load_frames(tmp_path / "videos/v_aaaaaaaaaaa.mp4", 10, 16)  # two seconds, of which each event has one
    readers = build_readers(["video"], 16, 5)
    for text, frames_TCHW in (("He begins.", whole_TCHW[:5]), ("He ends.", whole_TCHW[5:])):
        clips = load_media([told[text]], readers).media["video"]
        assert isinstance(clips, ClipBatch)
        torch.testing.assert_close(clips.frames.x_BCHW, frames_TCHW)


def test_speech_from_file_part_and_cut(tmp_path: Path, make_cuts: MakeCuts) -> None:
    cuts = make_cuts(3)
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    path = str(tmp_path / "wav" / "u001.wav")
    whole = ConversationItem("speech", path=path)
    part = ConversationItem("speech", path=path, offset_sec=0.1, duration_sec=0.15)
    tail = ConversationItem("speech", path=path, offset_sec=0.1, duration_sec=99.0)
    named = ConversationItem("speech", cut="u002")
    both = ConversationItem("speech", cut="u000", path="no such file, but the cut is known")
    readers = build_readers(["speech"], 0, 0, cuts=[str(tmp_path)])
    items = [whole, part, tail, named, both]
    batch = load_media([ask(str(number), item, task="asr") for number, item in enumerate(items)], readers)
    assert batch.skipped == []
    found = batch.media["speech"]
    assert isinstance(found, FbankBatch)
    rows = [x_TF[:length] for x_TF, length in zip(found.x_BTF, found.lens_B.tolist(), strict=True)]
    samples, _ = soundfile.read(path, dtype="float32")
    soundfile.write(tmp_path / "part.wav", samples[1600:4000], 16000)
    alone = SpeechReader().read(ConversationItem("speech", path=str(tmp_path / "part.wav")), Place("c"))
    torch.testing.assert_close(rows[0], load_features(cuts[1]))
    torch.testing.assert_close(rows[1], alone, atol=1e-2, rtol=1e-2)  # written again as 16-bit integers
    assert len(rows[2]) == len(rows[0]) - 10
    torch.testing.assert_close(rows[3], load_features(cuts[2]))
    torch.testing.assert_close(rows[4], load_features(cuts[0]))
    assert batch.seconds == pytest.approx(sum(map(len, rows)) / 100)


def test_speech_that_cannot_be_found(tmp_path: Path, make_cuts: MakeCuts) -> None:
    save_cuts(make_cuts(2), tmp_path / "cuts.jsonl.gz")
    reader = build_readers(["speech"], 0, 0, cuts=[str(tmp_path / "cuts.jsonl.gz")])["speech"]
    with pytest.raises(DataError, match=r"cut `u9`: none of the 2 cuts that are known, and the item has no `path`"):
        reader.read(ConversationItem("speech", cut="u9"), Place("c"))
    with pytest.raises(DataError, match=r"cut `u9`: no cuts are known \(data.cuts\)"):
        SpeechReader().read(ConversationItem("speech", cut="u9"), Place("c"))
    late = ConversationItem("speech", path=str(tmp_path / "wav" / "u001.wav"), offset_sec=50)
    with pytest.raises(DataError, match=r"u001\.wav: \d\.\d\d s long, the part begins at 50\.00 s"):
        reader.read(late, Place("c"))
    with pytest.raises(DataError, match=r"a part of 0\.0 s"):
        reader.read(replace(late, offset_sec=None, duration_sec=0.0), Place("c"))
    soundfile.write(tmp_path / "click.wav", np.zeros(40), 16000)
    with pytest.raises(DataError, match=r"click\.wav: too short for a single frame"):
        reader.read(ConversationItem("speech", path=str(tmp_path / "click.wav")), Place("c"))
    (tmp_path / "other.jsonl").write_text('{"id": "a"}\n{"no": "id"}\n')
    with pytest.raises(DataError, match=r"other\.jsonl:2: no JSON object with an `id`"):
        build_readers(["speech"], 0, 0, cuts=[str(tmp_path / "other.jsonl")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no cuts\.jsonl\.gz"):
        build_readers(["speech"], 0, 0, cuts=[str(tmp_path / "empty")])


def test_units(tmp_path: Path) -> None:
    reader = UnitReader(unit_cache(tmp_path / "units", {"a": 3, "b": 5, "silent": 0}))
    items = [ConversationItem("speech", cut="a", path="elsewhere/z.wav"), ConversationItem("speech", path="speech/b.flac")]
    assert [reader.length(item) for item in items] == [3, 5]
    batch = load_media([ask(str(n), item, task="asr") for n, item in enumerate(items)], {"speech": reader})
    found = batch.media["speech"]
    assert isinstance(found, Memory)
    assert found.lens_B.tolist() == [3, 5]
    assert found.x_BND.shape == (2, 5, WIDTH)
    assert torch.equal(found.x_BND[0, :3], torch.ones(3, WIDTH))
    heard = {float(reader.read(items[0], Place("c", epoch=epoch, train=True)).x_UD[0, 0]) for epoch in range(20)}
    assert heard == {1.0, float(np.float32(0.9))}
    assert {float(reader.read(items[0], Place("c", epoch=epoch)).x_UD[0, 0]) for epoch in range(20)} == {1.0}


def test_units_that_are_not_there(tmp_path: Path) -> None:
    reader = UnitReader(unit_cache(tmp_path / "units", {"a": 3, "silent": 0}))
    for item, words in (
        (ConversationItem("speech", cut="z"), "no units of `z` among 4"),
        (ConversationItem("speech", cut="silent"), "silent has no unit"),
        (ConversationItem("speech", path="a.wav", offset_sec=1.0), r"a\.wav: a part of a file; name its `cut`"),
    ):
        with pytest.raises(DataError, match=words):
            reader.read(item, Place("c"))
        assert reader.length(item) == 0


def test_audio_and_terminal(tmp_path: Path) -> None:
    tone = np.sin(np.arange(4410) / 10).astype(np.float32) / 2
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), 44100)
    soundfile.write(tmp_path / "long.wav", np.zeros(8000), 16000)
    (tmp_path / "state.txt").write_text("电量：80\n")
    sounds = [ConversationItem("audio", path=str(tmp_path / name)) for name in ("tone.wav", "long.wav")]
    states = [ConversationItem("terminal", text=" 蓝牙：开 "), ConversationItem("terminal", path=str(tmp_path / "state.txt"))]
    readers = build_readers(["audio", "terminal"], 0, 0)
    assert isinstance(readers["audio"], AudioReader)
    assert isinstance(readers["terminal"], TerminalReader)
    batch = load_media([ask("a", sounds[0], states[0]), ask("b", sounds[1], states[1])], readers)
    assert batch.skipped == []
    assert batch.media["audio"].lens_B.tolist() == [1600, 8000]
    assert batch.media["terminal"].texts == ["蓝牙：开", "电量：80"]
    assert batch.seconds == pytest.approx(0.6)
    for item, words in (
        (ConversationItem("terminal", text="  "), "a terminal item: an empty state"),
        (ConversationItem("terminal", path=str(tmp_path / "none.txt")), r"none\.txt: cannot be read \(No such file"),
        (ConversationItem("terminal", path=str(tmp_path / "tone.wav")), r"tone\.wav: cannot be read \(not UTF-8\)"),
    ):
        with pytest.raises(DataError, match=words):
            readers["terminal"].read(item, Place("c"))


def test_augmentation_is_a_function_of_seed_epoch_and_id(tmp_path: Path) -> None:
    item = image(picture(tmp_path / "a.png", size=(40, 60)))
    reader = ImageReader(16, ImageAugmentConfig(crop_scale=0.5, flip=0.5))
    place = Place("c", seed=3, epoch=1, train=True)
    seen = reader.read(item, place)
    assert torch.equal(seen, ImageReader(16, ImageAugmentConfig(0.5, 0.5)).read(item, place))
    for other in (replace(place, epoch=2), replace(place, seed=4), replace(place, id="d")):
        assert not torch.equal(seen, reader.read(item, other))
    plain = load_pixels(str(item.path), 16)
    assert torch.equal(reader.read(item, replace(place, train=False)), plain)
    assert torch.equal(ImageReader(16, ImageAugmentConfig()).read(item, place), plain)


@pytest.mark.parametrize("words", ["左上有什么", "它在右边吗"])
def test_no_flip_where_left_or_right_is_said(tmp_path: Path, words: str) -> None:
    path = picture(tmp_path / "a.png", size=(16, 16))
    plain, mirrored = load_pixels(path, 16), load_pixels(path, 16).flip(-1)
    reader = ImageReader(16, ImageAugmentConfig(flip=1.0))
    assert torch.allclose(reader.read(image(path), Place("c", "上面有什么", train=True)), mirrored)
    assert torch.allclose(reader.read(image(path), Place("c", words, train=True)), plain)
    # Also where only the sound says so, of which the words ride along.
    spoken = replace(ask("v", image(path), task="vsd"), custom={"question": words, "round": 3})
    assert words in all_text(spoken)
    batch = load_media([ask("t", image(path), answer=words), spoken, ask("f", image(path))], {"image": reader}, train=True)
    for found, expected in zip(batch.media["image"].x_BCHW, (plain, plain, mirrored), strict=True):
        assert torch.allclose(found, expected)


def test_share_of_flips(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", size=(16, 16))
    plain, reader = load_pixels(path, 16), ImageReader(16, ImageAugmentConfig(flip=0.25))
    kept = sum(torch.allclose(reader.read(image(path), Place(f"c{n}", train=True)), plain) for n in range(400))
    assert 260 < kept < 340  # 300 +- 4.6 standard deviations


def test_kinds_without_reader_or_size() -> None:
    with pytest.raises(ConfigError, match=r"smell: no reader .* there are image, video, speech, audio, terminal"):
        build_readers(["smell"], 16, 4)
    for kind in ("image", "video"):
        with pytest.raises(ConfigError, match=rf"{kind}: pictures of 0 pixels; set model\.encoders\.vision"):
            build_readers([kind], 0, 4)
    assert isinstance(build_readers(["video"], 16, 4)["video"], ClipReader)


@pytest.mark.parametrize(("settings", "words"), [
    ({"crop_scale": 0.0}, "crop_scale"), ({"crop_scale": 1.5}, "crop_scale"), ({"flip": 2.0}, "flip"),
    ({"never_flip": ["左", ""]}, "never_flip"),
])
def test_augmentation_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ImageAugmentConfig(**settings)  # type: ignore[arg-type]
