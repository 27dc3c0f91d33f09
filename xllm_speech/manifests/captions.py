"""Caption corpora to conversations: COCO, Flickr30k, AI-Challenger, Visual Genome, MiniGPT-4's cc_sbu_align.

    coco            {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}, or the records alone
    aic             [{"image_id": "<hash>.jpg", "caption": [five texts]}], or COCO's form with split words
    flickr30k       results_20130124.token: `1000092795.jpg#0<TAB>text`
    visual-genome   region_descriptions.json: [{"id", "regions": [{"region_id", "phrase", "x", "y", "width", "height"}]}]
    minigpt4        filter_cap.json: {"annotations": [{"image_id": "10", "caption"}]}

A caption becomes one conversation of task `caption` whose instruction the data set chooses; MiniGPT-4's descriptions are
of task `vl`, which brings its question along.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE
from xllm_speech.manifests.json_stream import JsonEntry, stream_json
from xllm_speech.manifests.llava_test import LEFT_OUT_KIND, is_llava_test_image
from xllm_speech.manifests.pictures import Pictures, answer_of, clean_text, describe_row
from xllm_speech.manifests.pieces import DEFAULT_JOBS, Fault, Item, LeftOut, Outcome, SetPlan, prepare_sets
from xllm_speech.manifests.text_lines import NOT_UTF8, readable_lines
from xllm_speech.records.manifest import ConversationItem

log = logging.getLogger(__name__)

CONVERSATIONS_NAME = "conversations.jsonl.gz"
CORPORA = ("coco", "flickr30k", "aic", "visual-genome", "minigpt4")
# Captions by a word in the annotation file's name; "" holds for any file.
PUBLISHED = {
    "coco": {"train2014": 414113, "val2014": 202654},  # of 82 783 and 40 504 pictures; Chen et al. 2015 say "five or more" each
    "flickr30k": {"": 158915},  # Young et al. 2014: 31 783 pictures, five each
    "aic": {"train": 1050000, "validation": 150000},  # Wu et al. 2017: 210 000 and 30 000 pictures, five each
    "visual-genome": {"": 5408689},  # regions of version 1.2, of 108 077 pictures; visualgenome.org
    "minigpt4": {"": 3439},  # Zhu et al. 2023 say "approximately 3,500"
}
ROUGHLY = ("minigpt4",)


@dataclass(frozen=True)
class Captioned:
    """A picture's possible file names, its id in the corpus, one text, and where in the picture that is (x, y, w, h)."""

    names: tuple[str, ...]
    image_id: str
    text: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class CaptionSettings:
    """What a caption manifest depends on beside the annotations.

    questions: wordings for `minigpt4`, one drawn per entry by `seed`. image_data: Visual Genome's image_data.json, which
    tells the COCO pictures among its own. min_region: smallest share of the picture that a region must cover.
    drop_repeats: leave out a text that its picture had before.
    """

    corpus: str
    questions: tuple[str, ...] = ()
    seed: int = 1
    image_data: Path | None = None
    min_region: float = 0.0
    drop_repeats: bool = False


def prepare_captions(
    settings: CaptionSettings, annotations: Sequence[str | Path], images: Sequence[str | Path], out: str | Path,
    jobs: int = DEFAULT_JOBS, max_rejected: float = DEFAULT_MAX_SHARE, open_media: bool = True,
) -> dict[str, float]:
    """`out/<set>/conversations.jsonl.gz` for each annotation file, with rejected.jsonl and statistics.json beside it.

    The set is `train` or `val` where the file's name says so, else the file's name. The 30 pictures of LLaVA-test are
    left out of whatever is COCO's.

    Args:
        images: folders of pictures. open_media: False neither looks for them nor opens them.

    Raises:
        DataError: a file that is not of the corpus's form, or too much broken.
    """
    if settings.corpus not in CORPORA:
        raise DataError(f"corpus `{settings.corpus}` is not one of {', '.join(CORPORA)}")
    if settings.corpus == "minigpt4" and not settings.questions:
        raise DataError("minigpt4: no questions to ask about its pictures")
    pictures = Pictures(images, open_media)
    paths = [Path(path) for path in annotations]
    names = set_names(paths)
    return prepare_sets(
        Path(out),
        (_plan(settings, name, path, pictures) for name, path in zip(names, paths, strict=True)),
        jobs,
        max_rejected,
    )


def set_names(paths: Sequence[Path]) -> list[str]:
    """The set of each annotation file: train, val, test by its name, else the name; `DataError` where two are alike."""
    names = []
    for path in paths:
        stem = path.name.split(".")[0]
        names.append(next((word for word in ("train", "val", "test") if word in stem.lower()), stem))
    if len(set(names)) < len(names):
        names = [path.name.split(".")[0] for path in paths]
    if len(set(names)) < len(names):
        raise DataError(f"annotation files of one name: {', '.join(map(str, paths))}")
    return names


def _plan(settings: CaptionSettings, name: str, path: Path, pictures: Pictures) -> SetPlan:
    published = next((n for word, n in PUBLISHED[settings.corpus].items() if word in path.name), None)
    sources = [path] + ([settings.image_data] if settings.image_data else [])
    options = {
        "corpus": settings.corpus, "questions": list(settings.questions), "seed": settings.seed,
        "min_region": settings.min_region, "drop_repeats": settings.drop_repeats,
        "images": [str(folder) for folder in pictures.folders], "opened": pictures.opened,
    }
    items = _read(settings, path)
    return SetPlan(
        name=name, manifest=CONVERSATIONS_NAME,
        items=_drop_repeats(items, settings.drop_repeats, path),
        work=lambda item: _describe(settings, pictures, item), unit="conversations", settings=options, sources=sources,
        measure=lambda row: {"characters": len(answer_of(row))},
        group=("images", lambda row: str(row["custom"]["image_id"])), published=published,
        roughly=settings.corpus in ROUGHLY,
    )


def _read(settings: CaptionSettings, path: Path) -> Iterator[Item | Fault | LeftOut]:
    match settings.corpus:
        case "flickr30k":
            return read_flickr30k(path)
        case "visual-genome":
            return read_visual_genome(path, settings.image_data)
        case _:
            return read_records(settings.corpus, path)


def _drop_repeats(items: Iterator[Item | Fault | LeftOut], drop: bool, path: Path) -> Iterator[Item | Fault | LeftOut]:
    """A text may stand twice for a picture (pools that were put together): that is said, or mended."""
    seen: set[int] = set()
    repeats = 0
    for item in items:
        if isinstance(item, Item):
            key = hash((item.value.image_id, item.value.text, item.value.box))
            if key in seen:
                repeats += 1
                if drop:
                    yield LeftOut("repeated")
                    continue
            seen.add(key)
        yield item
    if repeats and not drop:
        log.warning("%s: %d entries repeat a text of their picture; kept (--drop-repeats leaves them out)", path, repeats)


def _describe(settings: CaptionSettings, pictures: Pictures, item: Item) -> Outcome:
    value: Captioned = item.value
    found = pictures.check(item, value.names)
    if isinstance(found, Fault):
        return found
    path, picture = found
    if value.box is not None and pictures.opened and settings.min_region > 0:
        share = value.box[2] * value.box[3] / (picture.width * picture.height)
        if share < settings.min_region:
            return LeftOut("small-region")
    task, question = "caption", None
    if settings.corpus == "minigpt4":
        digest = hashlib.sha256(f"{settings.seed}\n{item.id}".encode(errors="surrogatepass")).digest()
        task, question = "vl", settings.questions[int.from_bytes(digest[:8], "big") % len(settings.questions)]
    medium = ConversationItem("image", path=path)
    box = None if value.box is None else list(value.box)
    return describe_row(item.id, task, medium, value.text, question, image_id=value.image_id, box=box)


def read_records(corpus: str, path: Path) -> Iterator[Item | Fault | LeftOut]:
    """Entries of COCO's form and its relatives: `annotations` with or without `images`, or a bare list of records."""
    names: dict[str, str] = {}
    kinds: set[str] = set()
    for entry in stream_json(path):  # `images` may stand behind the annotations
        kinds.add(entry.key if entry.index is not None else "")
        if entry.key == "images" and isinstance(entry.value, dict) and isinstance(entry.value.get("file_name"), str):
            names[str(entry.value.get("id"))] = entry.value["file_name"]
    if not kinds & {"", "annotations"}:
        raise DataError(f"{path}: no list of captions: expected `annotations`, or a list of objects with `caption`")
    uses: dict[str, int] = {}
    for entry in stream_json(path):
        if entry.index is not None and entry.key in ("", "annotations"):
            yield from _read_record(corpus, path, entry, names, uses)


def _read_record(
    corpus: str, path: Path, entry: JsonEntry, names: dict[str, str], uses: dict[str, int]
) -> Iterator[Item | Fault | LeftOut]:
    where = entry.where(path)
    value: dict[str, Any] = entry.value if isinstance(entry.value, dict) else {}
    image: Any = value.get("image_id", value.get("image"))
    texts = value.get("caption")
    item_id = f"{corpus}-{Path(str(image)).stem}" if image not in (None, "") else f"{corpus}-entry-{entry.index}"
    for key, part in (("image_id", image), ("caption", texts)):
        if part is None or isinstance(part, bool) or not isinstance(part, (str, list) if key == "caption" else (str, int)):
            found = f"has {', '.join(map(str, value)) or 'nothing'}" if part is None else f"`{key}` is {part!r}"
            yield Fault(item_id, where, f"no `{key}` ({found})", "bad-entry")
            return
    if image == "":
        yield Fault(item_id, where, "an empty `image_id`", "bad-entry")
        return
    number = value.get("id")
    for text in texts if isinstance(texts, list) else [texts]:
        place = uses[item_id] = uses.get(item_id, 0) + 1
        # COCO numbers its captions; elsewhere the picture's name counts them.
        plain = number is None or isinstance(texts, list)
        name = f"{item_id}-{place}" if plain else f"{corpus}-{number}"
        if corpus == "coco" and (is_llava_test_image(image) or is_llava_test_image(names.get(str(image), ""))):
            yield LeftOut(LEFT_OUT_KIND)
        elif not isinstance(text, str) or not text.strip():
            yield Fault(name, where, f"an empty caption of picture {image}", "empty-caption")
        else:
            yield Item(name, where, Captioned(_file_names(corpus, image, names), str(image), clean_text(text)))


def _file_names(corpus: str, image: str | int, names: dict[str, str]) -> tuple[str, ...]:
    known = names.get(str(image))
    if known is not None:
        split = known.split("_")[1] if known.count("_") == 2 else ""  # COCO_train2014_000000000009.jpg
        return (known, f"{split}/{known}") if split else (known,)
    if corpus == "coco" and str(image).isdigit():
        number = f"{int(image):012d}.jpg"
        long = [f"COCO_{split}2014_{number}" for split in ("train", "val")]
        return (number, *long, *(f"{split}2014/{name}" for split, name in zip(("train", "val"), long, strict=True)))
    return (str(image),)


def read_flickr30k(path: Path) -> Iterator[Item | Fault | LeftOut]:
    """Lines `name.jpg#number<TAB>text`."""
    for number, line in readable_lines(path):
        where = f"{path}:{number}"
        if line is None:
            yield Fault(f"flickr30k-line-{number}", where, NOT_UTF8, "bad-line")
            continue
        if not line.strip():
            continue
        head, tab, text = line.partition("\t")
        name, mark, place = head.strip().rpartition("#")
        if not tab or not mark or not name or not place.isdigit():
            yield Fault(f"flickr30k-line-{number}", where, f"not `picture.jpg#number<TAB>text`: {line[:60]!r}", "bad-line")
        elif not text.strip():
            yield Fault(f"flickr30k-{Path(name).stem}-{place}", where, f"an empty caption of {name}", "empty-caption")
        else:
            yield Item(f"flickr30k-{Path(name).stem}-{place}", where, Captioned((name,), name, clean_text(text)))


def read_visual_genome(path: Path, image_data: Path | None) -> Iterator[Item | Fault | LeftOut]:
    """Regions, each a caption with its box; pictures lie in `VG_100K` and `VG_100K_2` or flat."""
    excluded = _coco_twins(image_data)
    for entry in stream_json(path):
        where = entry.where(path)
        value: Any = entry.value
        if entry.index is None or not isinstance(value, dict) or not isinstance(value.get("regions"), list):
            yield Fault(f"visual-genome-entry-{entry.index}", where, "no `regions`", "bad-entry")
            continue
        for order, region in enumerate(value["regions"]):
            spot = f"{where}.regions[{order}]"
            region = region if isinstance(region, dict) else {}
            image = region.get("image_id", value.get("id", value.get("image_id")))
            number, text = region.get("region_id"), region.get("phrase")
            name = f"visual-genome-{number}"
            if number is None or not isinstance(image, int) or not isinstance(text, str):
                reason = "no `region_id`, `phrase` or picture id"
                yield Fault(f"visual-genome-entry-{entry.index}-{order}", spot, reason, "bad-entry")
            elif image in excluded:
                yield LeftOut(LEFT_OUT_KIND)
            elif not text.strip():
                yield Fault(name, spot, f"an empty phrase of picture {image}", "empty-caption")
            else:
                files = (f"{image}.jpg", f"VG_100K/{image}.jpg", f"VG_100K_2/{image}.jpg")
                yield Item(name, spot, Captioned(files, str(image), clean_text(text), _box(region)))


def _box(region: dict[str, Any]) -> tuple[float, float, float, float] | None:
    sides = [region.get(key) for key in ("x", "y", "width", "height")]
    numbers = [side for side in sides if isinstance(side, int | float) and not isinstance(side, bool)]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def _coco_twins(image_data: Path | None) -> set[int]:
    """Visual Genome's ids of the pictures that are COCO's LLaVA-test ones."""
    if image_data is None:
        log.warning("without --image-data the LLaVA-test pictures among Visual Genome's cannot be left out")
        return set()
    twins: set[int] = set()
    for entry in stream_json(image_data):
        value: dict[str, Any] = entry.value if isinstance(entry.value, dict) else {}
        number = value.get("image_id", value.get("id"))
        if isinstance(value.get("coco_id"), int) and is_llava_test_image(value["coco_id"]) and isinstance(number, int):
            twins.add(number)
    return twins
