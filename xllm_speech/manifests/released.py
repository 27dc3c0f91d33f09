"""The JSON arrays that the paper's authors trained from, to conversations (data.md, Corpora; the release's data sets).

    caption   {"image": path or [paths], "caption"}                      video   {"video", "caption"}
    vl        {"image_id": "10", "caption_zh"}                           video   {"image_id": "v_...", "caption_zh"}, .mp4
    asr       {"speech_feats_path": .npy [L, 512], "target_text"}        masr    the same with "image", or
                                                                                 "image_path" and "question_text"
    vsd       {"speech_feats_path", "image_path", "history_text", "answer_text"}
    question  {"question_id", "image", "text", "text_zh"}: the LLaVA-test questions, which have no answer

The kind of an entry shows in its keys. Speech is named by the id under which `datasets.units.ReleasedUnits` holds its
units, read from the same file; the .npy files are opened here and their shape is checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE
from xllm_speech.manifests.captions import CONVERSATIONS_NAME
from xllm_speech.manifests.conversations import conversation_to_dict
from xllm_speech.manifests.json_stream import stream_json
from xllm_speech.manifests.llava_test import LEFT_OUT_KIND, is_llava_test_image
from xllm_speech.manifests.pictures import Pictures, clean_text
from xllm_speech.manifests.pieces import DEFAULT_JOBS, Fault, Item, LeftOut, Outcome, SetPlan, prepare_sets
from xllm_speech.manifests.videos import Clips
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

KINDS = ("caption", "vl", "video", "asr", "masr", "vsd", "question")
UNIT_WIDTH = 512
_TASKS = {"question": "vl"}
# What stands before a question and before an answer in `history_text`.
_ASKED, _ANSWERED = "问题：", "回复："


@dataclass(frozen=True)
class Released:
    """One entry: its kind, the names its medium may have, its speech, the turns before it, and its last answer, if any."""

    kind: str
    visual: tuple[str, ...] = ()
    speech: str | None = None
    speech_id: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    question: str | None = None
    answer: str | None = None


def prepare_released(
    files: Sequence[str | Path], out: str | Path, images: Sequence[str | Path] = (), videos: Sequence[str | Path] = (),
    units: str | Path | None = None, questions: Sequence[str] = (), jobs: int = DEFAULT_JOBS,
    max_rejected: float = DEFAULT_MAX_SHARE, open_media: bool = True,
) -> dict[str, float]:
    """`out/<file>/conversations.jsonl.gz` for each JSON file, with rejected.jsonl and statistics.json beside it.

    Args:
        images, videos: folders; a path of the authors' machine is looked for there by its last parts. units: folder of
            the .npy files, where they are not at the paths in the file.
        questions: wordings for entries of kind `vl`, which name none.

    Raises:
        DataError: a file that is no array of such objects, or too much broken.
    """
    paths = [Path(path) for path in files]
    stems = [path.name.split(".")[0] for path in paths]
    if len(set(stems)) < len(stems):
        raise DataError(f"files of one name: {', '.join(map(str, paths))}")
    media = _Media(images, videos, units, tuple(questions), open_media)
    plans = (
        SetPlan(
            name=stem, manifest=CONVERSATIONS_NAME, items=read_released(path, bool(videos)), work=media.describe,
            unit="conversations", settings=media.settings, sources=[path],
        )
        for stem, path in zip(stems, paths, strict=True)
    )
    return prepare_sets(Path(out), plans, jobs, max_rejected)


def read_released(path: Path, with_videos: bool = False) -> Iterator[Item | Fault | LeftOut]:
    """The entries of one file. with_videos: an entry that may be a picture's or a clip's is a clip's where its id says so."""
    uses: dict[str, int] = {}
    listed = False
    for entry in stream_json(path):
        if entry.key or entry.index is None:
            raise DataError(f"{path}: not a JSON array of objects, but an object with `{entry.key}`")
        listed = True
        where = entry.where(path)
        found = _read_entry(entry.value, with_videos)
        if isinstance(found, str):
            yield Fault(f"entry-{entry.index}", where, found, "bad-entry")
            continue
        value, name = found
        place = uses[name] = uses.get(name, 0) + 1
        item_id = name if place == 1 else f"{name}-{place}"
        if value.kind != "question" and any(is_llava_test_image(known) for known in value.visual):
            yield LeftOut(LEFT_OUT_KIND)
        elif value.kind != "question" and not value.answer:
            yield Fault(item_id, where, "an empty text", "empty-caption")
        else:
            yield Item(item_id, where, value)
    if not listed:
        raise DataError(f"{path}: an empty array")


def _text(value: dict[str, Any], *keys: str) -> str | None:
    """The first of these keys that holds text, cleaned."""
    return next((clean_text(value[key]) for key in keys if isinstance(value.get(key), str)), None)


def _read_entry(value: Any, with_videos: bool) -> tuple[Released, str] | str:
    """(entry, name for its id), or what it lacks."""
    if not isinstance(value, dict):
        return f"not an object, but {str(value)[:40]!r}"
    image = value.get("image", value.get("image_path"))
    images = tuple(map(str, image)) if isinstance(image, list) else (image,) if isinstance(image, str) and image else ()
    if "speech_feats_path" in value:
        return _read_speech(value, images)
    if "question_id" in value:
        question = _text(value, "text_zh", "text")
        if not question or not images:
            return "a question without text or image"
        return Released("question", images, question=question), f"question-{value['question_id']}"
    caption = _text(value, "caption_zh", "caption")
    if caption is None:
        return f"none of speech_feats_path, question_id, caption, caption_zh (has {', '.join(map(str, value)) or 'nothing'})"
    if isinstance(value.get("video"), str):
        return Released("video", (value["video"],), answer=caption), f"video-{Path(value['video']).stem}"
    image_id = value.get("image_id")
    if images:
        return Released("caption", images, answer=caption), f"caption-{Path(images[0]).stem}"
    if not isinstance(image_id, str | int) or image_id == "":
        return "neither image, video nor image_id"
    # The release keeps clips under `image_id` too: `v_...` of ActivityNet, `video...` of MSR-VTT.
    if with_videos and str(image_id).startswith(("v_", "video")):
        return Released("video", (str(image_id),), answer=caption), f"video-{image_id}"
    return Released("vl", (str(image_id),), answer=caption), f"vl-{image_id}"


def _read_speech(value: dict[str, Any], images: tuple[str, ...]) -> tuple[Released, str] | str:
    path = value["speech_feats_path"]
    if not isinstance(path, str) or not path:
        return f"`speech_feats_path` is {path!r}"
    name = str(value.get("utterance_id") or Path(path).stem)
    if "answer_text" in value:
        history = _read_history(value.get("history_text"))
        if isinstance(history, str):
            return history
        answer = _text(value, "answer_text")
        return Released("vsd", images, path, name, history, answer=answer), f"vsd-{name}"
    text = _text(value, "target_text", "question_text")
    if text is None:
        return "none of target_text, question_text, answer_text"
    kind = "masr" if images else "asr"
    return Released(kind, images, path, name, answer=text), f"{kind}-{name}"


def _read_history(text: Any) -> tuple[tuple[str, str], ...] | str:
    """`问题：..回复：..问题：..回复：..` -> (question, answer) pairs."""
    if text is None or text == "":
        return ()
    if not isinstance(text, str) or not text.startswith(_ASKED):
        return f"`history_text` does not begin with {_ASKED}: {str(text)[:40]!r}"
    pairs = []
    for round_text in text.split(_ASKED)[1:]:
        question, mark, answer = round_text.partition(_ANSWERED)
        if not mark or not question.strip() or not answer.strip():
            return f"a round of `history_text` lacks its question or answer: {round_text[:40]!r}"
        pairs.append((clean_text(question), clean_text(answer)))
    return tuple(pairs)


class _Media:
    """Finds and opens what entries name, and writes the conversations."""

    def __init__(
        self, images: Sequence[str | Path], videos: Sequence[str | Path], units: str | Path | None,
        questions: tuple[str, ...], opened: bool,
    ) -> None:
        self.pictures = Pictures(images or ["."], opened)
        self.clips = Clips(videos or ["."], opened)
        self.units = None if units is None else Path(units)
        self.questions = questions
        self.opened = opened
        self.settings = {
            "corpus": "released", "images": [str(path) for path in images], "videos": [str(path) for path in videos],
            "units": None if units is None else str(units), "questions": list(questions), "opened": opened,
        }

    def describe(self, item: Item) -> Outcome:
        """The conversation of one entry, or what is wrong with its media."""
        value: Released = item.value
        media: list[ConversationItem] = []
        if value.kind == "video":
            clip = self.clips.check(item, Path(value.visual[0]).with_suffix("").name)
            if isinstance(clip, Fault):
                return clip
            media.append(ConversationItem("video", path=clip[0]))
        elif value.visual:
            found = self.pictures.check(item, [name for path in value.visual for name in _last_parts(path)])
            if isinstance(found, Fault):
                return found
            media.append(ConversationItem("image", path=found[0]))
        custom: dict[str, object] = {"kind": value.kind}
        if value.speech is not None:
            path = self._find_units(value.speech)
            if self.opened and (reason := units_fault(path)):
                return Fault(item.id, item.where, f"{path}: {reason}", "units-broken")
            custom["units"] = path
            media.append(ConversationItem("speech", cut=value.speech_id))
        return conversation_to_dict(self._conversation(item.id, value, media, custom))

    def _conversation(
        self, item_id: str, value: Released, media: list[ConversationItem], custom: dict[str, object]
    ) -> Conversation:
        messages: list[Message] = []
        for question, answer in value.history:
            # The picture belongs to the first question of a dialogue, the speech to its last.
            first = [part for part in media if part.type == "image"] if not messages else []
            media = [part for part in media if part not in first]
            asked = (*first, ConversationItem("text", text=question))
            messages += [Message("user", asked), Message("assistant", (ConversationItem("text", text=answer),))]
        question_text = value.question
        if value.kind == "vl" and self.questions:
            digest = hashlib.sha256(item_id.encode(errors="surrogatepass")).digest()
            question_text = self.questions[int.from_bytes(digest[:8], "big") % len(self.questions)]
        last = [*media, ConversationItem("text", text=question_text)] if question_text else media
        messages.append(Message("user", tuple(last)))
        if value.answer:
            messages.append(Message("assistant", (ConversationItem("text", text=value.answer),)))
        return Conversation(item_id, _TASKS.get(value.kind, value.kind), tuple(messages), custom)

    def _find_units(self, path: str) -> str:
        if self.units is None or os.path.isfile(path):
            return path
        return str(self.units / Path(path).name)


def _last_parts(path: str) -> list[str]:
    """The whole path, then ever fewer of its last parts: the authors' folders are not the user's."""
    parts = Path(path).parts
    return [path, *("/".join(parts[place:]) for place in range(1, len(parts)))] if len(parts) > 1 else [path]


def units_fault(path: str) -> str | None:
    """Why a file of units is none: [L, 512] finite floats are expected; None where it is sound."""
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return f"unreadable units ({(str(error) or type(error).__name__).splitlines()[0]})"
    shape = getattr(matrix, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != UNIT_WIDTH or not shape[0]:
        return f"shape {shape}, expected [L, {UNIT_WIDTH}] with L at least 1"
    return None if matrix.dtype.kind == "f" and np.isfinite(matrix).all() else f"{matrix.dtype} values, not all finite numbers"
