"""Video corpora to conversations: MSR-VTT, ActivityNet Captions, and the dialogues of AVSD.

    msrvtt        {"videos": [{"video_id", "split", ...}], "sentences": [{"video_id", "sen_id", "caption"}]}
    activitynet   {"v_<id>": {"duration", "timestamps": [[start, end]], "sentences": [...]}}, seconds
    avsd          {"dialogs": [{"image_id", "caption", "summary", "dialog": [{"question", "answer"}]}]}

Clips are files `<video id>.mp4` (or another usual ending) in one of the folders given. Texts are stripped of outer blanks,
nothing else is lost: times, summaries and categories ride on `custom`.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE
from xllm_speech.manifests.captions import CONVERSATIONS_NAME, set_names
from xllm_speech.manifests.conversations import conversation_to_dict
from xllm_speech.manifests.json_stream import stream_json
from xllm_speech.manifests.pictures import KEPT_RESULTS, answer_of, clean_text
from xllm_speech.manifests.pieces import DEFAULT_JOBS, Fault, Item, LeftOut, Outcome, SetPlan, prepare_sets
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

log = logging.getLogger(__name__)

CORPORA = ("msrvtt", "activitynet", "avsd")
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
WHOLLY_DECODED_SEC = 60.0
UNDISCLOSED = "__UNDISCLOSED__"  # the answer that AVSD's test set keeps to itself
# MSR-VTT's `val` and `validate` are one set.
MSRVTT_SETS = {"train": "train", "val": "dev", "validate": "dev", "test": "test"}
PUBLISHED = {
    "msrvtt": {"train": 130260, "dev": 9940, "test": 59800},  # sentences; Xu et al. 2016: 6513, 497 and 2990 clips, 20 each
    "activitynet": {"train": 10009, "val_1": 4917, "val_2": 4885},  # videos; Krishna et al. 2017, entries of the files
    "avsd": {"train": 7659, "val": 1787, "test": 1710},  # dialogues of DSTC7; Alamri et al. 2019
}


@dataclass(frozen=True)
class Clip:
    """What is known of a clip: whether it opens, how long it lasts in seconds (0 where the file does not say)."""

    duration_sec: float = 0.0
    reason: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Told:
    """What is said about a video: turns of (question or None, answer), a part of it in seconds, and what rides along."""

    video: str
    turns: tuple[tuple[str | None, str], ...]
    part: tuple[float, float] | None = None
    custom: tuple[tuple[str, Any], ...] = ()


def open_clip(path: str) -> Clip:
    """Decode a clip to its end; of one that lasts longer than a minute only the key frames."""
    import av

    try:
        with av.open(path) as container:
            if not container.streams.video:
                return Clip(reason=f"{path}: no video stream", kind="clip-broken")
            stream = container.streams.video[0]
            seconds = container.duration / av.time_base if container.duration else 0.0
            if seconds > WHOLLY_DECODED_SEC:
                stream.codec_context.skip_frame = "NONKEY"
            last_sec = -1.0
            for frame in container.decode(stream):
                last_sec = max(last_sec, frame.time or 0.0)
    except FileNotFoundError:
        return Clip(reason=f"{path}: no such clip", kind="clip-missing")
    except (av.FFmpegError, OSError, ValueError) as error:
        return Clip(reason=f"{path}: clip cannot be read ({getattr(error, 'strerror', None) or error})", kind="clip-broken")
    if last_sec < 0:
        return Clip(reason=f"{path}: no picture in it", kind="clip-broken")
    if last_sec < seconds / 2:
        return Clip(reason=f"{path}: breaks off at {last_sec:.1f} of {seconds:.1f} s", kind="clip-broken")
    return Clip(max(seconds, last_sec))


class Clips:
    """The clips of a preparation, in the folders given; `opened` False leaves them unopened, and need not find them."""

    def __init__(self, folders: Sequence[str | Path], opened: bool = True) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.opened = opened
        if not self.folders:
            raise DataError("no folder of clips: name it with --videos")
        for folder in self.folders if opened else ():
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder of clips")
        self.open = functools.lru_cache(maxsize=KEPT_RESULTS)(open_clip)

    def check(self, item: Item, video: str) -> tuple[str, Clip] | Fault:
        """(path, clip) of a video id, or what is wrong with it."""
        if not self.opened:
            return os.path.join(self.folders[0], video + ENDINGS[0]), Clip()
        # ActivityNet's files are called `v_<id>` or `<id>`.
        names = [video, video.removeprefix("v_")]
        for path in (os.path.join(folder, name + end) for folder in self.folders for name in names for end in ENDINGS):
            if os.path.isfile(path):
                clip = self.open(path)
                return Fault(item.id, item.where, clip.reason, clip.kind) if clip.kind else (path, clip)
        places = ", ".join(str(folder) for folder in self.folders)
        return Fault(item.id, item.where, f"no clip {video} ({', '.join(ENDINGS)}) in {places}", "clip-missing")


def prepare_videos(
    corpus: str, annotations: Sequence[str | Path], videos: Sequence[str | Path], out: str | Path,
    jobs: int = DEFAULT_JOBS, max_rejected: float = DEFAULT_MAX_SHARE, open_media: bool = True, events: bool = False,
) -> dict[str, float]:
    """`out/<set>/conversations.jsonl.gz` with rejected.jsonl and statistics.json beside it, tasks `video`.

    MSR-VTT gives one conversation per sentence, in the sets its videos name; ActivityNet one per video, its sentences in
    the order of time, or with `events` one per sentence about that part of the clip; AVSD one dialogue per video.

    Raises:
        DataError: a file that is not of the corpus's form, or too much broken.
    """
    clips = Clips(videos, open_media)
    paths = [Path(path) for path in annotations]
    match corpus:
        case "msrvtt":
            plans = _plan_msrvtt(paths, clips)
        case "activitynet":
            plans = [
                _plan(corpus, name, read_activitynet(path, events), path, clips, events)
                for name, path in zip(set_names(paths), paths, strict=True)
            ]
        case "avsd":
            plans = [
                _plan(corpus, name, read_avsd(path), path, clips, events)
                for name, path in zip(set_names(paths), paths, strict=True)
            ]
        case _:
            raise DataError(f"corpus `{corpus}` is not one of {', '.join(CORPORA)}")
    return prepare_sets(Path(out), plans, jobs, max_rejected)


def _plan(
    corpus: str, name: str, items: Iterator[Item | Fault | LeftOut], path: Path, clips: Clips, events: bool
) -> SetPlan:
    wanted = name if corpus == "msrvtt" else path.name
    published = next((n for word, n in PUBLISHED[corpus].items() if word in wanted), None)
    settings = {"corpus": corpus, "events": events, "videos": [str(f) for f in clips.folders], "opened": clips.opened}
    return SetPlan(
        name=name, manifest=CONVERSATIONS_NAME, items=items, work=lambda item: _describe(clips, item), unit="conversations",
        settings=settings, sources=[path], measure=lambda row: {"characters": len(answer_of(row))},
        group=("videos", lambda row: str(row["custom"]["video_id"])), published=None if events else published,
    )


def _describe(clips: Clips, item: Item) -> Outcome:
    told: Told = item.value
    found = clips.check(item, told.video)
    if isinstance(found, Fault):
        return found
    path, clip = found
    medium = ConversationItem("video", path=path)
    if told.part is not None:
        start_sec, end_sec = told.part
        if clip.duration_sec and start_sec >= clip.duration_sec:
            reason = f"{start_sec} .. {end_sec} s, the clip lasts {clip.duration_sec:.2f} s"
            return Fault(item.id, item.where, reason, "outside-clip")
        end_sec = min(end_sec, clip.duration_sec or end_sec)
        medium = ConversationItem("video", path=path, offset_sec=start_sec, duration_sec=round(end_sec - start_sec, 3))
    messages = []
    for place, (question, answer) in enumerate(told.turns):
        items = [medium] if place == 0 else []
        if question is not None:
            items.append(ConversationItem("text", text=question))
        messages += [Message("user", tuple(items)), Message("assistant", (ConversationItem("text", text=answer),))]
    custom = {"video_id": told.video, **dict(told.custom)}
    return conversation_to_dict(Conversation(item.id, "video", tuple(messages), custom))


def _plan_msrvtt(paths: Sequence[Path], clips: Clips) -> list[SetPlan]:
    plans: list[SetPlan] = []
    for path in paths:
        videos: dict[str, dict[str, Any]] = {}
        sentences = False
        for entry in stream_json(path):
            value = entry.value
            if entry.key == "videos" and isinstance(value, dict) and isinstance(value.get("video_id"), str):
                videos[value["video_id"]] = value
            sentences = sentences or entry.key == "sentences"
        if not videos or not sentences:
            raise DataError(f"{path}: not MSR-VTT: no `videos` or no `sentences`")
        splits = sorted({str(video.get("split")) for video in videos.values()})
        sets = {MSRVTT_SETS.get(split, split): split for split in splits}
        known = [plan.name for plan in plans]
        if doubled := [name for name in sets if name in known]:
            raise DataError(f"{path}: its set {doubled[0]} is in an earlier file too; prepare the two apart")
        for name in sets:
            first = name == next(iter(sets))
            plans.append(_plan("msrvtt", name, read_msrvtt(path, videos, name, first), path, clips, False))
    return plans


def read_msrvtt(path: Path, videos: dict[str, dict[str, Any]], name: str, first: bool) -> Iterator[Item | Fault | LeftOut]:
    """Sentences about the videos of one set; those that belong to no video are rejected with the `first` set."""
    for entry in stream_json(path):
        if entry.key != "sentences" or entry.index is None:
            continue
        where = entry.where(path)
        value = entry.value if isinstance(entry.value, dict) else {}
        video, number, text = value.get("video_id"), value.get("sen_id"), value.get("caption")
        sentence_id = f"msrvtt-{number}" if number is not None else f"msrvtt-entry-{entry.index}"
        known = videos.get(video) if isinstance(video, str) else None
        if known is None:
            if first:
                yield Fault(sentence_id, where, f"its video {video!r} is not among `videos`", "bad-entry")
            continue
        if MSRVTT_SETS.get(str(known.get("split")), str(known.get("split"))) != name:
            continue
        if not isinstance(text, str) or not text.strip():
            yield Fault(sentence_id, where, f"an empty caption of {video}", "empty-caption")
        else:
            custom: list[tuple[str, Any]] = [(key, known[key]) for key in ("category", "url") if key in known]
            times = [known.get("start time"), known.get("end time")]
            if None not in times:
                custom.append(("source_sec", times))
            yield Item(sentence_id, where, Told(str(video), ((None, clean_text(text)),), custom=tuple(custom)))


def read_activitynet(path: Path, events: bool) -> Iterator[Item | Fault | LeftOut]:
    """A video per entry, its sentences by time of their beginning; or with `events` every sentence by itself."""
    for entry in stream_json(path):
        where = f"{path}: {entry.key or 'entry'}" + ("" if entry.index is None else f"[{entry.index}]")
        value = entry.value
        name = f"activitynet-{entry.key or entry.index}"
        times, texts = (value.get("timestamps"), value.get("sentences")) if isinstance(value, dict) else (None, None)
        if entry.index is not None or not isinstance(times, list) or not isinstance(texts, list):
            yield Fault(name, where, "no `timestamps` and `sentences`", "bad-entry")
            continue
        if len(times) != len(texts):
            yield Fault(name, where, f"{len(times)} timestamps for {len(texts)} sentences", "bad-entry")
            continue
        parts: list[tuple[float, float, str]] = []
        faults = []
        for place, (span, text) in enumerate(zip(times, texts, strict=True)):
            reason = _fault_of_event(span, text)
            if reason:
                faults.append(Fault(f"{name}-{place}", f"{where}.sentences[{place}]", reason, "bad-event"))
            else:
                # A few of the annotators' spans run backwards.
                parts.append((min(span), max(span), clean_text(text)))
        yield from faults
        parts.sort(key=lambda part: part[:2])
        duration = value.get("duration")
        if events:
            for place, (start, end, text) in enumerate(parts):
                told = Told(entry.key, ((None, text),), (start, end), (("duration_sec", duration),))
                yield Item(f"{name}-{place}", where, told)
        elif parts:
            spans = [[start, end, text] for start, end, text in parts]
            custom = (("duration_sec", duration), ("events", spans))
            yield Item(name, where, Told(entry.key, ((None, " ".join(text for _, _, text in parts)),), custom=custom))
        elif not faults:
            yield Fault(name, where, "no sentence", "bad-entry")


def _fault_of_event(span: Any, text: Any) -> str | None:
    numbers = isinstance(span, list) and len(span) == 2 and all(isinstance(side, int | float) for side in span)
    if not numbers or not all(math.isfinite(side) and side >= 0 for side in span):
        return f"timestamps {span!r} are not [start, end] in seconds"
    if span[0] == span[1]:
        return f"lasts from {span[0]} to {span[1]} s"
    return None if isinstance(text, str) and text.strip() else "an empty sentence"


def read_avsd(path: Path) -> Iterator[Item | Fault | LeftOut]:
    """A dialogue per video; a question without an answer ends it (the test set's last one)."""
    for entry in stream_json(path):
        if entry.key != "dialogs" or entry.index is None:
            continue
        where = entry.where(path)
        value = entry.value if isinstance(entry.value, dict) else {}
        video, rounds = value.get("image_id"), value.get("dialog")
        name = f"avsd-{video or entry.index}"
        if not isinstance(video, str) or not isinstance(rounds, list):
            yield Fault(name, where, "no `image_id` or no `dialog`", "bad-entry")
            continue
        turns: list[tuple[str | None, str]] = []
        for place, turn in enumerate(rounds):
            words: list[Any] = [turn.get(key) for key in ("question", "answer")] if isinstance(turn, dict) else []
            words = [None if text == UNDISCLOSED else text for text in words]
            if len(words) == 2 and all(isinstance(text, str) and text.strip() for text in words):
                turns.append((clean_text(words[0]), clean_text(words[1])))
            elif place + 1 < len(rounds):
                yield Fault(f"{name}-{place}", f"{where}.dialog[{place}]", "no question or no answer", "bad-round")
        if not turns:
            yield Fault(name, where, "no round with question and answer", "bad-entry")
            continue
        custom = tuple((key, value[key]) for key in ("caption", "summary") if isinstance(value.get(key), str))
        yield Item(name, where, Told(video, tuple(turns), custom=custom))
