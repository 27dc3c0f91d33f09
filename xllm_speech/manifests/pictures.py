"""Pictures of caption corpora: found below folders, opened once, and described as conversations."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xllm_speech.base.errors import DataError
from xllm_speech.manifests.conversations import conversation_to_dict
from xllm_speech.manifests.pieces import Fault, Item, LeftOut, Row
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# Results that are kept, so that a picture with five captions is opened once; more than COCO has pictures.
KEPT_RESULTS = 1 << 17
_HAN = "\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_BETWEEN_HAN = re.compile(f"(?<=[{_HAN}])\\s+|\\s+(?=[{_HAN}])")


@dataclass(frozen=True)
class Picture:
    """Width and height in pixels, or why it cannot be used and the kind of that."""

    width: int = 0
    height: int = 0
    reason: str = ""
    kind: str = ""


def open_picture(path: str) -> Picture:
    """Decode a picture to its end; JPEG at an eighth of its size, which is enough to find it truncated."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            size = picture.size
            picture.draft("RGB", (size[0] // 8, size[1] // 8))
            picture.load()
    except FileNotFoundError:
        return Picture(reason=f"no such picture: {path}", kind="picture-missing")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Picture(reason=f"{path}: picture cannot be read ({reason})", kind="picture-broken")
    return Picture(*size)


class Pictures:
    """The pictures of a preparation.

    Args:
        folders: where they are; a name is looked for in each, in order.
        opened: False leaves them unopened, and need not find them: their paths are then those in the first folder.

    Raises:
        DataError: `opened`, and a folder is absent.
    """

    def __init__(self, folders: Sequence[str | Path], opened: bool = True) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.opened = opened
        if not self.folders:
            raise DataError("no folder of pictures: name it with --images")
        for folder in self.folders if opened else ():
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder of pictures")
        self.open = functools.lru_cache(maxsize=KEPT_RESULTS)(open_picture)

    def find(self, names: Sequence[str]) -> str | None:
        """Path of the first of `names` that is in one of the folders; a name without a usual ending gets one."""
        for folder in self.folders:
            for name in names:
                path = os.path.join(folder, name)
                if not self.opened:
                    return path if name.lower().endswith(ENDINGS) else path + ENDINGS[0]
                if os.path.isfile(path):
                    return path
                if not name.lower().endswith(ENDINGS):
                    for ending in ENDINGS:
                        if os.path.isfile(path + ending):
                            return path + ending
        return None

    def check(self, item: Item, names: Sequence[str]) -> tuple[str, Picture] | Fault:
        """(path, picture) of the first name that is there, opened, or what is wrong with it."""
        path = self.find(names)
        if path is None:
            places = ", ".join(str(folder) for folder in self.folders)
            return Fault(item.id, item.where, f"no picture {names[0]} in {places}", "picture-missing")
        if not self.opened:
            return path, Picture()
        picture = self.open(path)
        if picture.kind:
            return Fault(item.id, item.where, picture.reason, picture.kind)
        return path, picture


def clean_text(text: str) -> str:
    """One line without blanks at its ends; words that were set apart within Chinese text join again."""
    return _BETWEEN_HAN.sub("", " ".join(text.split()))


def is_whole(text: str) -> bool:
    """Whether UTF-8 can hold a text: JSON may tell half a character, such as `\\ud83d` alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe_row(
    item_id: str, task: str, medium: ConversationItem, answer: str, question: str | None = None, **custom: object
) -> Row:
    """A conversation as a manifest's row: a medium, with a question or without (the data set then asks), and the answer."""
    asked = (medium,) if question is None else (medium, ConversationItem("text", text=question))
    reply = Message("assistant", (ConversationItem("text", text=answer),))
    kept = {key: value for key, value in custom.items() if value is not None}
    return conversation_to_dict(Conversation(item_id, task, (Message("user", asked), reply), kept))


def answer_of(row: Row) -> str:
    """The last answer of a row that `describe_row` made."""
    return str(row["messages"][-1]["content"])


def filter_size(picture: Picture, min_side_px: int, max_aspect: float) -> LeftOut | None:
    """Leaves out pictures with a side below `min_side_px`, or more than `max_aspect` times as long as they are wide."""
    short, long = sorted((picture.width, picture.height))
    if short < min_side_px:
        return LeftOut("too-small")
    return LeftOut("too-long-or-wide") if long > max_aspect * short else None
