"""The pictures and captions of a test set, and what stands in their place under a condition: another's picture, a grey one.

(evaluation.md, Does the image help?)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.base.files import atomic_write
from xllm_speech.features.images import read_picture
from xllm_speech.manifests.cuts import utterance_of


@dataclass(frozen=True)
class Picture:
    """A picture by its pixels: what two files that show the same have in common. grey: mean grey level, 0..255."""

    sha256: str
    width: int
    height: int
    grey: float


@dataclass(frozen=True)
class Item:
    """One utterance of the test set. picture: None where it has none that can be read; caption "" where it has none."""

    cut: Cut
    text: str
    image: str | None
    picture: Picture | None
    caption: str

    def with_media(self, image: str | None, caption: str) -> Cut:
        """The cut with this picture and caption in place of its own."""
        custom = getattr(self.cut, "custom", None) or {}
        return fastcopy(self.cut, custom={**custom, "image": image, "caption": caption or None})


def read_items(cuts: Iterable[Cut]) -> tuple[list[Item], list[str]]:
    """The utterances with their pictures looked at, and a sentence for every picture that cannot be read.

    Raises:
        DataError: an id occurs twice, a cut has several supervisions, or has no transcript to be scored by.
    """
    items: list[Item] = []
    looked: dict[str, Picture | None] = {}
    notes: list[str] = []
    seen: set[str] = set()
    for cut in cuts:
        try:
            utterance = utterance_of(cut)
        except SeamError as error:
            raise DataError(str(error)) from error
        if utterance.text is None:
            raise DataError(f"{cut.id}: no transcript; conditions are compared by their error rates")
        if cut.id in seen:
            raise DataError(f"{cut.id}: the id stands on two cuts; keep one of them")
        seen.add(cut.id)
        image = utterance.image
        if image is not None and image not in looked:
            try:
                looked[image] = _look_at(image)
            except DataError as error:
                looked[image] = None
                notes.append(f"{cut.id} counts as an utterance without a picture: {error}")
        picture = None if image is None else looked[image]
        items.append(Item(cut, utterance.text, image if picture else None, picture, utterance.caption or ""))
    return items, notes


def _look_at(path: str) -> Picture:
    image = read_picture(path)
    histogram = image.convert("L").histogram()
    grey = sum(level * count for level, count in enumerate(histogram)) / max(1, sum(histogram))
    digest = hashlib.sha256(f"{image.width} {image.height}\n".encode() + image.tobytes())
    return Picture(digest.hexdigest(), image.width, image.height, grey)


def wrong_images(items: Sequence[Item], seed: int) -> dict[str, str]:
    """Id of every utterance with a picture -> the picture of another one, which differs in content and in caption.

    Drawn by the seed alone. Every picture comes as often as it does among the right ones, so that only the pairing is wrong;
    where more than half of the utterances share a picture, the others' come more often. Left out are utterances for which there
    is no other picture.
    """
    groups = _same_to_see([item for item in items if item.picture is not None])
    generator = random.Random(seed)
    order = sorted(groups)
    generator.shuffle(order)
    members = []
    for key in order:
        own = sorted(groups[key], key=lambda item: item.cut.id)
        generator.shuffle(own)
        members += [(key, item) for item in own]
    # Members of a group stand side by side: moved on by the length of the longest, none stays inside its own.
    step = max((len(group) for group in groups.values()), default=0)
    found = {}
    for place, (key, item) in enumerate(members):
        donor_key, donor = members[(place + step) % len(members)]
        if donor_key == key:
            others = [other for other_key, other in members if other_key != key]
            if not others:
                continue
            donor = others[place % len(others)]
        found[item.cut.id] = str(donor.image)
    return found


def _same_to_see(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Groups of utterances linked by pictures of the same pixels, or by the same caption."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for item in items:
        assert item.picture is not None
        if item.caption:
            one, two = sorted((root(f"picture {item.picture.sha256}"), root(f"caption {item.caption}")))
            parent[two] = one
    groups: dict[str, list[Item]] = {}
    for item in items:
        assert item.picture is not None
        groups.setdefault(root(f"picture {item.picture.sha256}"), []).append(item)
    return groups


def blank_images(items: Sequence[Item], folder: Path) -> tuple[dict[str, str], int]:
    """Id of every utterance with a picture -> an even grey one of the same size, and its level.

    The level is the mean of the test set's different pictures, so that a grey one tells nothing of the one that it stands for.
    They are written to `folder`, one for each size.
    """
    pictures = {item.picture.sha256: item.picture for item in items if item.picture is not None}
    level = round(sum(picture.grey for picture in pictures.values()) / max(1, len(pictures)))
    found = {}
    for item in items:
        if item.picture is not None:
            found[item.cut.id] = str(_grey_picture(folder, item.picture.width, item.picture.height, level))
    return found, level


def _grey_picture(folder: Path, width: int, height: int, level: int) -> Path:
    from PIL import Image

    path = folder / f"grey{level}_{width}x{height}.png"
    if not path.is_file():
        with atomic_write(path, "wb") as stream:
            Image.new("RGB", (width, height), (level, level, level)).save(stream, "PNG")
    return path


def hash_media(items: Sequence[Item], images: Mapping[str, str], captions: bool, pictures: Mapping[str, str]) -> str:
    """What is seen and read under a condition, as one hash: by id, the picture's content and the caption.

    images: id -> the picture shown; none where the id is absent. pictures: path -> hash of the content.
    """
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.cut.id):
        image = images.get(item.cut.id)
        shown = "" if image is None else pictures.get(image, Path(image).name)
        digest.update(f"{item.cut.id}\t{shown}\t{item.caption if captions else ''}\n".encode())
    return digest.hexdigest()
