"""Pictures from the web with their texts: CC3M, SBU, Wukong, and any table of url or path and caption.

    cc3m      Train_GCC-training.tsv: `caption<TAB>url`, no header
    sbu       SBU_captioned_photo_dataset_urls.txt with ..._captions.txt beside it, sbu-captions-all.json, or a table
    wukong    wukong_100m_0.csv ...: header `url,caption`

A table is csv or tsv, gzip or plain, with a header (caption, url, path) or without one: then the column that holds
urls or paths of pictures is told by the first rows. Pictures that were never downloaded are normal here: they are counted
by themselves, with a limit of their own. Similarity scores come from a file, `id<TAB>score` a line, since what computes
them (CLIP, Chinese-CLIP) is the user's choice; the ids are those of the manifest without the filter.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import numbered_lines
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE
from xllm_speech.manifests.captions import CONVERSATIONS_NAME
from xllm_speech.manifests.json_stream import stream_json
from xllm_speech.manifests.llava_test import LEFT_OUT_KIND, is_llava_test_image
from xllm_speech.manifests.pictures import ENDINGS, Pictures, answer_of, clean_text, describe_row, filter_size
from xllm_speech.manifests.pieces import DEFAULT_JOBS, Fault, Item, LeftOut, Outcome, SetPlan, prepare_sets
from xllm_speech.manifests.text_lines import NOT_UTF8, readable_lines
from xllm_speech.records.manifest import ConversationItem

log = logging.getLogger(__name__)

CORPORA = ("cc3m", "sbu", "wukong")
NAMINGS = ("md5", "sha256", "row")
NOT_DOWNLOADED = "not-downloaded"
PIECE_ROWS = 10000
# Pairs. CC3M: Sharma et al. 2018, and the card of the data set on the Hugging Face hub. SBU: Ordonez et al. 2011; of its later
# JSON file about 860 thousand are left (img2dataset's notes). Wukong: Gu et al. 2022, the card of `wukong100m` on that hub.
PUBLISHED = {
    "cc3m": {"training": 3318333, "validation": 15840}, "sbu": {"sbu-captions-all": 860000, "": 1000000}, "wukong": {},
}
ROUGHLY = (860000,)
PUBLISHED_WUKONG = 101483885
# Header -> what a column is.
COLUMNS = {
    "caption": ("caption", "text", "title", "alt", "caption_zh"),
    "url": ("url", "image_url", "img_url", "link"),
    "path": ("path", "image", "image_path", "file", "file_name", "filename", "filepath", "dir"),
}
_PROBED_ROWS = 20
_BROKEN_LINE = "\udcff"  # stands for a line that is not UTF-8; no text that was read holds it
_SWALLOWED_ROW = re.compile(r"\n\s*https?://")


@dataclass(frozen=True)
class WebSettings:
    """What a manifest depends on beside its tables.

    naming: how files of downloaded urls are called, below the pictures' folder: `md5` or `sha256` of the url in hex, or
    `row`, the number of the row from 0 in nine digits (in a folder of the table's name, where there are several tables).
    min_side_px, max_aspect: smaller or longer pictures are left out; the lists were filtered by their authors (Wukong:
    200 pixels, 3), so the default only stops placeholders. scores, min_score: file of similarities, and the least one
    to keep (paper 0.45 with CLIP, release 0.475 with Chinese-CLIP).
    """

    corpus: str
    naming: str = "md5"
    min_side_px: int = 32
    max_aspect: float = 3.0
    scores: str | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.corpus not in CORPORA:
            raise DataError(f"corpus `{self.corpus}` is not one of {', '.join(CORPORA)}")
        if self.naming not in NAMINGS:
            raise DataError(f"--naming `{self.naming}` is not one of {', '.join(NAMINGS)}")
        if self.min_side_px < 1 or self.max_aspect < 1:
            raise DataError(f"--min-side-px {self.min_side_px} and --max-aspect {self.max_aspect} must be at least 1")
        if (self.scores is None) != (self.min_score is None):
            raise DataError("--scores and --min-score belong together")


@dataclass(frozen=True)
class Pair:
    """A text, and the names that its picture's file may have; without any it was only ever a url."""

    names: tuple[str, ...]
    caption: str
    url: str | None


def prepare_web_images(
    settings: WebSettings, tables: Sequence[str | Path], images: Sequence[str | Path], out: str | Path,
    jobs: int = DEFAULT_JOBS, max_rejected: float = DEFAULT_MAX_SHARE, max_missing: float = 0.5, open_media: bool = True,
) -> dict[str, float]:
    """`out/<table>/conversations.jsonl.gz` for each table, with rejected.jsonl and statistics.json beside it.

    Args:
        max_missing: largest share (0..1) of pictures that were not downloaded.

    Raises:
        DataError: a table that is none, or too much broken or missing.
    """
    pictures = Pictures(images, open_media)
    scores = None if settings.scores is None else Scores(Path(settings.scores))
    paths = [Path(path) for path in tables]
    stems = [path.name.split(".")[0] for path in paths]
    if len(set(stems)) < len(stems):
        raise DataError(f"tables of one name: {', '.join(map(str, paths))}")
    if settings.corpus == "wukong" and scores is None:
        log.warning("wukong: not filtered by similarity; name --scores and --min-score (0.45 CLIP, 0.475 Chinese-CLIP)")
    counts = prepare_sets(
        Path(out),
        (_plan(settings, path, len(paths) > 1, pictures, scores, max_missing) for path in paths),
        jobs,
        max_rejected,
    )
    if settings.corpus == "wukong":
        rows = sum(int(counts[f"{stem}.conversations"] + counts.get(f"{stem}.left_out", 0)) for stem in stems)
        if rows != PUBLISHED_WUKONG:
            log.warning("wukong: %d usable pairs, %d were published", rows, PUBLISHED_WUKONG)
    return counts


def _plan(
    settings: WebSettings, path: Path, several: bool, pictures: Pictures, scores: Scores | None, max_missing: float
) -> SetPlan:
    published = next((n for word, n in PUBLISHED[settings.corpus].items() if word in path.name.lower()), None)
    stem = path.name.split(".")[0]
    return SetPlan(
        name=stem, manifest=CONVERSATIONS_NAME, items=read_pairs(settings, path, several),
        work=lambda item: _describe(settings, pictures, scores, item), unit="conversations",
        settings={**asdict(settings), "images": [str(folder) for folder in pictures.folders], "opened": pictures.opened},
        sources=[path, *([Path(settings.scores)] if settings.scores else [])],
        measure=lambda row: {"characters": len(answer_of(row))}, published=published, roughly=published in ROUGHLY,
        shares={NOT_DOWNLOADED: max_missing}, ids_unique=True, piece_items=PIECE_ROWS,
    )


def _describe(settings: WebSettings, pictures: Pictures, scores: Scores | None, item: Item) -> Outcome:
    pair: Pair = item.value
    if scores is not None and settings.min_score is not None:
        score = scores.get(item.id)
        if score is None:
            return Fault(item.id, item.where, f"no score in {scores.path}", "no-score")
        if score < settings.min_score:
            return LeftOut("below-min-score")
    found = pictures.check(item, pair.names)
    if isinstance(found, Fault):
        if found.kind == "picture-missing" and pair.url is not None:
            return Fault(item.id, item.where, f"{found.reason} (of {pair.url})", NOT_DOWNLOADED)
        return found
    path, picture = found
    if pictures.opened and (left_out := filter_size(picture, settings.min_side_px, settings.max_aspect)):
        return left_out
    return describe_row(item.id, "caption", ConversationItem("image", path=path), pair.caption, url=pair.url)


class Scores:
    """Similarities by id from lines `id<TAB>score`; 12 bytes each, so that a hundred million fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        keys = np.fromiter((hash_id(name) for name, _ in self._lines()), dtype=np.uint64)
        values = np.fromiter((score for _, score in self._lines()), dtype=np.float32)
        order = np.argsort(keys, kind="stable")
        self.keys, self.values = keys[order], values[order]

    def _lines(self) -> Iterator[tuple[str, float]]:
        for number, line in numbered_lines(self.path):
            name, _, score = line.rpartition("\t")
            try:
                yield name, float(score)
            except ValueError:
                raise DataError(f"{self.path}:{number}: not `id<TAB>score`: {line[:60]!r}") from None

    def get(self, name: str) -> float | None:
        """The score of an id; None where it has none, or one that is no number."""
        key = np.uint64(hash_id(name))
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key or not np.isfinite(self.values[place]):
            return None
        return float(self.values[place])


def hash_id(name: str) -> int:
    """Eight bytes that stand for an id."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def read_pairs(settings: WebSettings, path: Path, several: bool = False) -> Iterator[Item | Fault | LeftOut]:
    """The rows of one list in whatever form it has; ids are `<corpus>-<table>-<row>`, rows counted from 0."""
    stem = path.name.split(".")[0]
    for row, (where, pair) in enumerate(_read_rows(path)):
        name = f"{settings.corpus}-{stem}-{row:09d}"
        if isinstance(pair, str):
            yield Fault(name, where, pair, "bad-line")
            continue
        if not pair.caption:
            yield Fault(name, where, "an empty caption", "empty-caption")
        elif any(is_llava_test_image(known) for known in pair.names):
            yield LeftOut(LEFT_OUT_KIND)
        else:
            names = pair.names or _downloaded_names(settings.naming, pair.url or "", stem if several else None, row)
            yield Item(name, where, Pair(names, pair.caption, pair.url))


def _downloaded_names(naming: str, url: str, folder: str | None, row: int) -> tuple[str, ...]:
    match naming:
        case "md5":
            return (hashlib.md5(url.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest(),)
        case "sha256":
            return (hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest(),)
        case _:
            return (f"{row:09d}",) if folder is None else (f"{folder}/{row:09d}",)


def _read_rows(path: Path) -> Iterator[tuple[str, Pair | str]]:
    """(where, pair or what is wrong) of each row of a list."""
    words = re.sub(r"\.gz$", "", path.name.lower())
    if words.endswith(".json"):
        return _read_columns_of_json(path)
    if words.endswith(".txt"):
        return _read_two_files(path)
    return _read_table(path, "\t" if words.endswith(".tsv") else ",")


def _read_two_files(path: Path) -> Iterator[tuple[str, Pair | str]]:
    """SBU's two files: a url a line, and its caption in the same line of the other."""
    other = path.with_name(path.name.replace("urls", "captions"))
    if other == path or not other.is_file():
        raise DataError(f"{path}: expected a file `...urls.txt` with `...captions.txt` beside it")
    for left, right in itertools.zip_longest(readable_lines(path), readable_lines(other)):
        if left is None or right is None:
            raise DataError(f"{path} and {other}: one has more lines than the other; they do not belong together")
        where = f"{path if left[1] is None else other}:{left[0]}"
        if left[1] is None or right[1] is None:
            yield where, NOT_UTF8
        elif not left[1].strip():
            yield f"{path}:{left[0]}", "an empty line in place of a url"
        else:
            yield f"{path}:{left[0]}", Pair((), clean_text(right[1]), left[1].strip())


def _read_columns_of_json(path: Path) -> Iterator[tuple[str, Pair | str]]:
    """SBU's {"image_urls": [...], "captions": [...]}, or a list of objects with the keys of a table."""
    urls: list[str] = []
    captions: list[str] = []
    for entry in stream_json(path):
        if entry.index is None:
            continue
        if entry.key == "image_urls":
            urls.append(str(entry.value))
        elif entry.key == "captions":
            captions.append(str(entry.value))
        elif isinstance(entry.value, dict):
            places = {what: key for what, keys in COLUMNS.items() for key in reversed(keys) if key in entry.value}
            cells = {what: str(entry.value[key] or "") for what, key in places.items()}
            yield entry.where(path), _pair(cells)
        else:
            yield entry.where(path), "not an object"
    if len(urls) != len(captions):
        raise DataError(f"{path}: {len(urls)} image_urls and {len(captions)} captions; they do not belong together")
    for place, (url, caption) in enumerate(zip(urls, captions, strict=True)):
        yield f"{path}: captions[{place}]", Pair((), clean_text(caption), url.strip())


def _pair(cells: dict[str, str]) -> Pair | str:
    path, url = cells.get("path", "").strip(), cells.get("url", "").strip()
    if "caption" not in cells:
        return "no caption"
    if not path and not url:
        return "neither url nor path"
    return Pair((path,) if path else (), clean_text(cells["caption"]), url or None)


def _read_table(path: Path, delimiter: str) -> Iterator[tuple[str, Pair | str]]:
    """csv as spreadsheets write it; tsv as it stands, for captions with quotes in them."""
    lines = (_BROKEN_LINE if line is None else line for _, line in readable_lines(path))
    if delimiter == "\t":
        rows: Iterator[tuple[int, list[str] | str]] = ((number, line.split("\t")) for number, line in enumerate(lines, 1))
    else:
        rows = _csv_rows(lines)
    first = list(itertools.islice(rows, _PROBED_ROWS))
    probed = [row for _, row in first if isinstance(row, list)]
    if not probed:
        raise DataError(f"{path}: an empty table")
    columns, width, has_header = find_columns(probed, path)
    for number, row in itertools.chain(first[1:] if has_header else first, rows):
        where = f"{path}:{number}"
        if isinstance(row, str):
            yield where, row
        elif row == [] or row == [""]:
            continue
        elif any(_BROKEN_LINE in cell for cell in row):
            yield where, NOT_UTF8
        elif len(row) != width:
            yield where, f"{len(row)} columns, expected {width}: {delimiter.join(row)[:60]!r}"
        elif any(_SWALLOWED_ROW.search(cell) for cell in row if "\n" in cell):
            yield where, f"a quotation mark that nothing closes has taken in other rows: {delimiter.join(row)[:60]!r}"
        else:
            yield where, _pair({what: row[place] for what, place in columns.items()})


def _csv_rows(lines: Iterator[str]) -> Iterator[tuple[int, list[str] | str]]:
    """(line that a row begins in, its cells or why it cannot be read); what follows such a one is read on."""
    passed = 0
    clean = (line.replace("\0", "").replace("\r", " ") + "\n" for line in lines)
    while True:
        reader = csv.reader(clean)
        begin = passed + 1
        try:
            for row in reader:
                yield begin, row
                begin = passed + reader.line_num + 1
            return
        except csv.Error as error:
            yield begin, f"not csv up to line {passed + reader.line_num} ({error})"
            passed += reader.line_num


def find_columns(rows: list[list[str]], path: Path) -> tuple[dict[str, int], int, bool]:
    """(what -> column, number of columns, whether the first row is a header), by the header or by what the rows hold."""
    header = [cell.strip().lower() for cell in rows[0]]
    named: dict[str, int] = {}
    for what, keys in COLUMNS.items():
        place = next((header.index(key) for key in keys if key in header), None)
        if place is not None:
            named[what] = place
    if "caption" in named and ("url" in named or "path" in named):
        return named, len(header), True
    whole = [row for row in rows if len(row) == 2 and all(cell.strip() for cell in row)]
    for what, test in (("url", _is_url), ("path", _is_path)):
        for place in (0, 1):
            if sum(test(row[place]) for row in whole) > len(whole) / 2:
                return {what: place, "caption": 1 - place}, 2, False
    raise DataError(
        f"{path}: no header with caption and url or path ({', '.join(header)[:80]!r}), and not two columns of which one "
        "holds urls or paths of pictures"
    )


def _is_url(cell: str) -> bool:
    return bool(re.match(r"\s*https?://", cell))


def _is_path(cell: str) -> bool:
    return cell.strip().lower().endswith(ENDINGS)
