"""Where conversations come from: conversation manifests, and cuts of which conversations are made on the fly (data.md)."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from lhotse import MonoCut
from lhotse.cut import Cut

from xllm_speech.base.errors import ConfigError, DataError, SeamError
from xllm_speech.base.files import numbered_lines
from xllm_speech.base.rejects import Rejects
from xllm_speech.datasets.conversation_config import SourceConfig
from xllm_speech.datasets.lines import IdIndex, PackedLines, cut_at, find_cuts_file, read_id
from xllm_speech.manifests.conversations import conversation_from_dict
from xllm_speech.manifests.cuts import PathFinder, utterance_of
from xllm_speech.records import Conversation, ConversationItem, Message
from xllm_speech.records.manifest import ITEM_TYPES, TASKS
from xllm_speech.text.normalise import normalise

CUT_TASKS = ("asr", "masr")


class ConversationSource:
    """The conversations of one source, each made when it is wanted.

    Args:
        config: the source. kinds: item types that may occur beside the usual ones. max_rejected: largest share of lines that
            may be broken; they are left out, and stand in `rejects`.

    Attributes:
        path: the manifest. captions: whether captions stand before instructions. counts: task -> number of conversations.
        rejects: broken lines.

    Raises:
        DataError: no such manifest, nothing of the tasks in it, an id occurs twice, or too many broken lines.
        ConfigError: cuts, and not exactly one task that can be made of them; or captions, and no cuts.
    """

    def __init__(self, config: SourceConfig, kinds: Collection[str] = (), max_rejected: float = 0.0) -> None:
        self.path = find_cuts_file(config.path)
        self.kinds = tuple(dict.fromkeys((*ITEM_TYPES, *kinds)))
        self.rejects = Rejects(max_rejected)
        self.holds_cuts, self.captions = _holds_cuts(self.path), config.captions
        if self.captions and not self.holds_cuts:
            raise ConfigError(f"{self.path} holds conversations, which bring all their words: leave `captions` of it away")
        self._finder = PathFinder(self.path.parent)
        wanted = tuple(config.tasks)
        if self.holds_cuts and (len(wanted) != 1 or wanted[0] not in CUT_TASKS):
            raise ConfigError(f"{self.path} holds cuts: name exactly one of {', '.join(CUT_TASKS)} in its `tasks`")
        self._tasks_N, others = self._read(wanted)
        self.counts = {task: n for place, task in enumerate(TASKS) if (n := int((self._tasks_N == place).sum()))}
        if not self.counts:
            what = " with a picture" if wanted == ("masr",) and self.holds_cuts else ""
            there = f"; there are {', '.join(sorted(others))}" if others else ""
            raise DataError(f"{self.path}: holds no conversation{what} of the tasks {', '.join(wanted) or 'known'}{there}")

    def _read(self, wanted: Collection[str]) -> tuple[np.ndarray, set[str]]:
        """Pack the lines wanted; returns the task of each, by its place in TASKS, and the tasks that were not wanted."""
        tasks, hashes, others, total = array("b"), array("q"), set(), 0

        def keep(number: int, line: str) -> bool:
            nonlocal total
            total += 1
            where = f"{self.path}:{number}"
            try:
                name = read_id(where, line)
                task = next(iter(wanted)) if self.holds_cuts else _read_task(where, line)
            except DataError as error:
                self.rejects.add(f"line {number}", where, str(error), "bad-line")
                return False
            if (wanted and task not in wanted) or (task == "masr" and self.holds_cuts and '"image"' not in line):
                others.add(task)
                return False
            tasks.append(TASKS.index(task))
            hashes.append(IdIndex.hash(name))
            return True

        self._lines = PackedLines(self.path, keep)
        self.rejects.check(total, self.path)
        repeat = IdIndex(hashes).first_repeat()
        if repeat is not None:
            first, again = (self._lines.where(place) for place in repeat)
            raise DataError(f"{again}: id `{read_id(again, self._lines[repeat[1]][1])}` was used in {first} already")
        return np.array(tasks, dtype=np.int8), others

    def __len__(self) -> int:
        return len(self._lines)

    def rows(self, task: str) -> np.ndarray:
        """Places of the conversations of a task, rising."""
        return np.flatnonzero(self._tasks_N == TASKS.index(task))

    def where(self, place: int) -> str:
        """`file:line` of a conversation."""
        return self._lines.where(place)

    def get(self, place: int) -> Conversation:
        """The conversation at a place from 0.

        Raises:
            DataError: its line is no conversation, or the cut there has no transcript, or (task masr) no picture.
        """
        if self.holds_cuts:
            cut = cut_at(self._lines, place, self._finder)
            try:
                return conversation_of(cut, TASKS[self._tasks_N[place]], self.captions)
            except DataError as error:
                raise DataError(f"{self.where(place)}: {error}") from error
        try:
            conversation = conversation_from_dict(json.loads(self._lines[place][1]), self.kinds)
        except SeamError as error:
            raise DataError(f"{self.where(place)}: {error}") from error
        return replace(conversation, messages=tuple(map(self._locate, conversation.messages)))

    def _locate(self, message: Message) -> Message:
        items = [item if item.path is None else replace(item, path=self._finder.find(item.path)) for item in message.items]
        return replace(message, items=tuple(items))


def conversation_of(cut: Cut, task: str, captions: bool = False) -> Conversation:
    """An utterance as a conversation of task asr, or masr with its picture in front; the answer is its transcript.

    The speech item names the cut, and the file too where that says as much as the cut does. captions: the cut's caption is kept
    in `custom`, for `prompts.with_caption`.

    Raises:
        DataError: no transcript, or no picture.
    """
    utterance = utterance_of(cut)
    text = normalise(utterance.text or "")
    if not text:
        raise DataError(f"{cut.id}: no transcript")
    items = [_speech_item(cut)]
    if task == "masr":
        if utterance.image is None:
            raise DataError(f"{cut.id}: no picture")
        items.insert(0, ConversationItem("image", path=utterance.image))
    answer = Message("assistant", (ConversationItem("text", text=text),))
    custom: dict[str, object] = {"caption": utterance.caption} if captions and utterance.caption else {}
    return Conversation(f"{cut.id}-{task}", task, (Message("user", tuple(items)), answer), custom)


def _speech_item(cut: Cut) -> ConversationItem:
    path = offset_sec = None
    if isinstance(cut, MonoCut) and cut.has_recording and cut.recording.num_channels == 1:
        sources, plain = cut.recording.sources, not cut.recording.transforms
        if plain and len(sources) == 1 and sources[0].type == "file":
            path, offset_sec = str(sources[0].source), cut.start or None
    return ConversationItem("speech", path=path, cut=cut.id, offset_sec=offset_sec, duration_sec=cut.duration)


def _holds_cuts(path: Path) -> bool:
    """Whether the first line that is a JSON object is a cut and no conversation; neither: a conversation."""
    for _, line in numbered_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            return "messages" not in value and "type" in value
    return False


def _read_task(where: str, line: str) -> str:
    task = json.loads(line).get("task")
    if task not in TASKS:
        raise DataError(f"{where}: task {task!r} is not one of {', '.join(TASKS)}")
    return str(task)
