"""The multimodal instruction data of phase 3 (paper, 3.2.3 and A.1): a seeded choice from prepared manifests.

The paper has people choose 3.5 thousand descriptions of MiniGPT-4's, 2 thousand utterances of AISHELL-2, 1 thousand clips of
ActivityNet and 1 thousand dialogues of VSDial-CN; the release adds 2 thousand utterances with pictures. Here the choice is
by hash of seed and id: the same on every machine, whatever the order of the manifests. Instructions are drawn per epoch
by the data set, except where a question belongs to the entry.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.base.files import write_json
from xllm_speech.manifests.captions import CONVERSATIONS_NAME
from xllm_speech.manifests.conversations import read_conversations, write_conversations
from xllm_speech.manifests.cuts import load_cuts, utterance_of
from xllm_speech.manifests.pieces import STATISTICS_NAME
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """One kind of instruction data: how many the paper (or the release) has, what its manifest is, and the tasks it takes."""

    count: int
    manifest: str
    tasks: tuple[str, ...] = ()


# In the order in which they are reported. `cuts` become conversations here.
KINDS: Mapping[str, Kind] = {
    "vl": Kind(3500, "conversations", ("vl", "caption")),
    "asr": Kind(2000, "cuts"),
    "video": Kind(1000, "conversations", ("video",)),
    "vsd": Kind(1000, "conversations", ("vsd",)),
    "masr": Kind(2000, "cuts"),
}


@dataclass(frozen=True)
class Source:
    """A manifest, and how many of its examples are wanted."""

    path: Path
    count: int


def prepare_instructions(sources: Mapping[str, Source], out: str | Path, seed: int = 1) -> dict[str, float]:
    """`out/conversations.jsonl.gz`, mixed, and `out/statistics.json` with what was taken from where.

    Args:
        sources: by a name of `KINDS`.

    Raises:
        DataError: no source, an unknown kind, a broken manifest, or one with nothing of its kind; an id in two manifests.
    """
    if unknown := sorted(set(sources) - set(KINDS)):
        raise DataError(f"kind `{unknown[0]}` is not one of {', '.join(KINDS)}")
    if not sources:
        raise DataError(f"no manifest to choose from; name one of {', '.join(f'--{kind}' for kind in KINDS)}")
    chosen: list[tuple[bytes, Conversation]] = []
    taken: dict[str, dict[str, object]] = {}
    counts: dict[str, float] = {}
    for kind in (name for name in KINDS if name in sources):
        source = sources[kind]
        found, total = _choose(kind, source, seed)
        if not total:
            raise DataError(f"{source.path}: nothing of the kind `{kind}` in it ({_what(kind)})")
        if len(found) < source.count:
            log.warning("%s: %d of the %d wanted for `%s`; all are taken", source.path, total, source.count, kind)
        chosen += found
        taken[kind] = {"from": str(source.path), "of": total, "wanted": source.count, "taken": len(found)}
        counts[kind] = len(found)
        log.info("%s: %d of %d from %s", kind, len(found), total, source.path)
    chosen.sort(key=lambda pair: pair[0])
    seen: set[str] = set()
    for _, conversation in chosen:
        if conversation.id in seen:
            raise DataError(f"the id {conversation.id} stands in two of the manifests; prepare them under other names")
        seen.add(conversation.id)
    counts["conversations"] = len(chosen)
    write_json(Path(out) / STATISTICS_NAME, {"statistics": counts, "taken": taken, "settings": {"seed": seed}})
    write_conversations(Path(out) / CONVERSATIONS_NAME, (conversation for _, conversation in chosen))
    return counts


def _what(kind: str) -> str:
    wanted = KINDS[kind]
    if wanted.manifest == "cuts":
        return "cuts with a transcript" + (" and a picture" if kind == "masr" else "")
    return f"conversations of task {' or '.join(wanted.tasks)}"


def _choose(kind: str, source: Source, seed: int) -> tuple[list[tuple[bytes, Conversation]], int]:
    """The conversations with the smallest hashes, and how many there were to choose from."""
    total = 0

    def hashed(items: Iterable[Conversation]) -> Iterator[tuple[bytes, Conversation]]:
        nonlocal total
        for conversation in items:
            total += 1
            yield hashlib.sha256(f"{seed}\n{kind}\n{conversation.id}".encode()).digest(), conversation

    if KINDS[kind].manifest == "cuts":
        items = speech_conversations(load_cuts(source.path), kind)
    else:
        items = (item for item in read_conversations(source.path) if item.task in KINDS[kind].tasks)
    return heapq.nsmallest(source.count, hashed(items), key=lambda pair: pair[0]), total


def speech_conversations(cuts: Iterable[Cut], task: str) -> Iterator[Conversation]:
    """Recognition as conversations: `asr`, or `masr` of those cuts that have a picture. Cuts without words are passed over.

    Raises:
        DataError: a cut that cannot be told in these terms.
    """
    for cut in cuts:
        try:
            utterance = utterance_of(cut)
        except SeamError as error:
            raise DataError(f"cut {cut.id}: {error}") from error
        if not utterance.text or (task == "masr" and utterance.image is None):
            continue
        items = [_speech_item(cut)]
        if task == "masr":
            items.insert(0, ConversationItem("image", path=utterance.image))
        answer = Message("assistant", (ConversationItem("text", text=utterance.text),))
        yield Conversation(f"{task}-{cut.id}", task, (Message("user", tuple(items)), answer))


def _speech_item(cut: Cut) -> ConversationItem:
    """By its file where there is one, with the part of it; a cut that has none, or is mixed of several, by its id."""
    recording = getattr(cut, "recording", None)
    if recording is None or len(recording.sources) != 1 or recording.sources[0].type != "file":
        return ConversationItem("speech", cut=cut.id)
    path = str(recording.sources[0].source)
    if cut.start == 0 and abs(cut.duration - recording.duration) < 1e-3:
        return ConversationItem("speech", path=path)
    return ConversationItem("speech", path=path, offset_sec=cut.start, duration_sec=cut.duration)
