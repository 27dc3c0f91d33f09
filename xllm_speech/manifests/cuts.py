"""Speech manifests: lhotse cuts in `cuts.jsonl.gz`, read line by line, each line checked (data.md, Manifests)."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from lhotse import CutSet, Recording
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.base.files import atomic_write, numbered_lines
from xllm_speech.base.rejects import Rejects
from xllm_speech.records import Utterance

logger = logging.getLogger(__name__)

CUTS_NAME = "cuts.jsonl.gz"
REJECTED_NAME = "rejected.jsonl"  # beside every manifest that was prepared
# How many folders above a manifest its relative paths may start from.
PARENT_LEVELS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


class PathFinder:
    """Finds the files a manifest names: as given (from the working directory), else from the manifest's folder or one
    of its parents. The first file found below each top folder decides for all others below it, and is said in the log.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder).resolve()
        self.places: list[Path | None] = [None, folder, *folder.parents[:PARENT_LEVELS]]
        self._chosen: dict[str, Path | None] = {}

    def find(self, path: str, probe: bool = False) -> str:
        """The path to open; unchanged where nothing is found. `probe` looks at every file, not only the first."""
        parts = Path(path).parts
        if not parts or Path(path).is_absolute():
            return path
        first = parts[0]
        if first in self._chosen and not probe:
            place = self._chosen[first]
            return path if place is None else str(place / path)
        known = [self._chosen[first]] if first in self._chosen else []
        for place in [*known, *self.places]:
            candidate = Path(path) if place is None else place / path
            if os.path.exists(candidate):  # unlike Path.exists, false also for a name that no file can have
                if first not in self._chosen:
                    self._chosen[first] = place
                    if place is not None:
                        logger.info("paths like %s are taken relative to %s", path, place)
                return str(candidate)
        return path


class CutLines:
    """The cuts of a JSON-lines manifest, lazily, once per iteration; each line checked.

    A bad line goes to `rejects` (once, however often one iterates) or, without one, raises.
    """

    def __init__(self, path: str | Path, rejects: Rejects | None = None) -> None:
        self.path = Path(path)
        self.rejects = rejects
        self._told: set[int] = set()
        self._finder = PathFinder(self.path.parent)

    def __iter__(self) -> Iterator[Cut]:
        for number, line in numbered_lines(self.path):
            if not line.strip():
                continue
            try:
                cut = parse_cut(line)
            except (DataError, SeamError) as error:
                self._refuse(number, str(error))
                continue
            yield locate_files(cut, self._finder)

    def _refuse(self, number: int, reason: str) -> None:
        where = f"{self.path}:{number}"
        if self.rejects is None:
            raise DataError(f"{where}: {reason}")
        if number not in self._told:
            self._told.add(number)
            self.rejects.add(f"line {number}", where, reason, "bad-line")


def parse_cut(line: str) -> Cut:
    """One manifest line -> cut; `DataError` says what is wrong with it (the caller knows the line number)."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(value, dict) or "type" not in value:
        raise DataError("not a cut: a JSON object with `type` MonoCut, MultiCut, MixedCut or PaddingCut was expected")
    try:
        cut = deserialize_item(value)
        duration = cut.duration
    except Exception as error:  # lhotse raises TypeError, KeyError, ValueError, AssertionError ... by what is missing
        raise DataError(f"not a cut that lhotse reads ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if not getattr(cut, "id", ""):
        raise DataError("a cut without id")
    if not duration > 0:
        raise DataError(f"cut {cut.id}: duration {duration} s")
    return cut


def locate_files(cut: Cut, finder: PathFinder, probe: bool = False) -> Cut:
    """The same cut with recording, features and picture paths as `finder` finds them."""
    changes: dict[str, Any] = {}
    recording = getattr(cut, "recording", None)
    if isinstance(recording, Recording):
        sources = [
            fastcopy(source, source=finder.find(str(source.source), probe)) if source.type == "file" else source
            for source in recording.sources
        ]
        if sources != recording.sources:
            changes["recording"] = fastcopy(recording, sources=sources)
    features = getattr(cut, "features", None)
    if features is not None and features.storage_type in ("kaldiio", "numpy_files"):
        # An archive position is `feats.ark:OFFSET`; the file is what stands before it.
        path, colon, offset = str(features.storage_path).rpartition(":")
        file = path if colon and offset.isdigit() else str(features.storage_path)
        found = finder.find(file, probe)
        if found != file:
            changes["features"] = fastcopy(features, storage_path=found + (f":{offset}" if file == path else ""))
    custom = getattr(cut, "custom", None) or {}
    if isinstance(custom.get("image"), str):
        found = finder.find(custom["image"], probe)
        if found != custom["image"]:
            changes["custom"] = {**custom, "image": found}
    return fastcopy(cut, **changes) if changes else cut


def load_cuts(path: str | Path, rejects: Rejects | None = None) -> CutSet:
    """A lazy `CutSet` over `cuts.jsonl` or `cuts.jsonl.gz`; nothing is read before it is iterated.

    Relative paths in it hold from the working directory or, where nothing is there, from the manifest's folder or one
    of its parents.

    Raises:
        DataError: no such file; when iterated and `rejects` is None, a line that is no cut (names file and line).
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such manifest")
    return CutSet(CutLines(path, rejects))


def save_cuts(cuts: Iterable[Cut], path: str | Path) -> int:
    """Write cuts as JSON lines, atomically, gzipped where the name ends in .gz; returns their number.

    Raises:
        DataError: a cut that holds its audio in memory; nothing is written then.
    """
    count = 0
    with atomic_write(path) as stream:
        for cut in cuts:
            value = cut.to_dict()
            if value.get("custom"):
                value["custom"].pop("dataloading_info", None)  # lhotse's samplers leave it there
            try:
                stream.write(json.dumps(value, ensure_ascii=False) + "\n")
            except TypeError as error:
                raise DataError(f"{path}: cut {cut.id} holds data in memory; write its audio to a file first") from error
            count += 1
    return count


def utterance_of(cut: Cut) -> Utterance:
    """What a cut says about itself. Picture, caption and dialogue come from the cut's `custom`, else its supervision's.

    Raises:
        DataError: more than one supervision (cut it first with lhotse's trim_to_supervisions).
    """
    supervisions = cut.supervisions
    if len(supervisions) > 1:
        raise DataError(
            f"{cut.id}: {len(supervisions)} supervisions in one cut; cut them apart (lhotse: trim_to_supervisions)"
        )
    supervision = supervisions[0] if supervisions else None
    custom = {**((supervision.custom if supervision else None) or {}), **(getattr(cut, "custom", None) or {})}

    def text_of(key: str) -> str | None:
        value = custom.get(key)
        return None if value is None or value == "" else str(value)

    number = custom.get("round")
    return Utterance(
        id=cut.id, duration_sec=cut.duration, text=supervision.text if supervision else None,
        speaker=supervision.speaker if supervision else None, image=text_of("image"), caption=text_of("caption"),
        dialog_id=text_of("dialog_id"), round=None if number is None else int(number),
    )


def make_recording(recording_id: str, path: str | Path) -> Recording:
    """A lhotse `Recording` of a file by its header: libsndfile first, PyAV for what it does not know (m4a).

    Raises:
        DataError: missing, empty or unreadable; names the file.
    """
    import soundfile

    if not os.path.isfile(path):
        raise DataError(f"{path}: no such audio file")
    if not Path(path).stat().st_size:
        raise DataError(f"{path}: an empty file")
    try:
        info = soundfile.info(str(path))
        rate_hz, count, channels = info.samplerate, info.frames, info.channels
    except (soundfile.LibsndfileError, RuntimeError) as error:
        try:
            rate_hz, count, channels = _probe_with_av(path)
        except Exception:
            reason = str(error).partition(": ")[2] or str(error)
            raise DataError(f"{path}: unreadable audio ({reason.strip().rstrip('.')})") from error
    if count <= 0 or rate_hz <= 0:
        raise DataError(f"{path}: holds no audio samples")
    numbers = list(range(channels))
    return Recording(
        id=recording_id, sources=[AudioSource("file", numbers, str(path))], sampling_rate=rate_hz, num_samples=count,
        duration=count / rate_hz, channel_ids=numbers,
    )


def _probe_with_av(path: str | Path) -> tuple[int, int, int]:
    """Rate, samples and channels by decoding: a container's own duration is only an estimate."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        count = sum(frame.samples for frame in container.decode(stream))
        return int(stream.rate), count, int(stream.channels)


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int = 8, window: int = 512
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) in order, `jobs` at a time, never more than `window` in flight however many items there are."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        while block := list(itertools.islice(iterator, window)):
            yield from zip(block, pool.map(work, block), strict=True)
