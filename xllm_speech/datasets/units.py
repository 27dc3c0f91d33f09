"""The unit cache: CIF units of a frozen ASR model, computed once and read instead of audio (system.md section 5).

    units.json          format, key of the model, speeds, manifests, counts, size of every archive; written last
    index.jsonl.gz      one line per utterance: id, shard, places in the archives, number of units, quantity
    units.scp times.scp Kaldi lists over all shards, for other tools (float16 only through kaldiio)
    rejected.jsonl      what could not be computed, and why
    shards/             units.N.ark [U, D], times.N.ark [U, 2] (start and fire in steps), units.N.json when finished

Copies at another speed have ids such as `sp0.9-<id>`. `infer.units` fills a cache; `ReleasedUnits` reads what the
paper's authors released instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import torch
from kaldiio.matio import read_kaldi

from xllm_speech.base.errors import CheckpointError, DataError
from xllm_speech.base.files import atomic_write, numbered_lines, read_json, read_jsonl, sha256_file, write_json
from xllm_speech.features.augment import choose_speed
from xllm_speech.manifests.cuts import PathFinder
from xllm_speech.records import Memory
from xllm_speech.records.checks import ensure

FORMAT = "xllm-units-1"
SUMMARY_NAME = "units.json"  # written last: where it stands, everything else does
INDEX_NAME = "index.jsonl.gz"
SHARDS_NAME = "shards"
DTYPES = ("float32", "float16")
ARCHIVE_MARKS = (b"\0B", b"NPY")  # kaldiio would also unpickle; a cache never holds that


@dataclass(frozen=True)
class UnitKey:
    """What units depend on beside the audio: a cache with another key is stale.

    model_sha256: hash of the ASR model's weights (CMVN and CIF are in them). encoder: the settings of the encoder that act
    in inference. tail_threshold: of CIF. channel: what is taken from recordings of several channels.
    """

    model_sha256: str
    encoder: dict[str, Any]
    tail_threshold: float
    channel: str

    @classmethod
    def of(cls, weights: str | Path, encoder: Any, tail_threshold: float, channel: str) -> UnitKey:
        """The key of a model: its weights file, the encoder's configuration (a dataclass), CIF and feature settings."""
        settings = {name: value for name, value in asdict(encoder).items() if "dropout" not in name}
        if not settings.get("chunk_steps"):  # full context, as before there were chunks: those caches still hold
            settings = {name: value for name, value in settings.items() if name not in ("chunk_steps", "left_chunks")}
        return cls(sha256_file(weights), settings, tail_threshold, channel)


@dataclass(frozen=True)
class Units:
    """Units of one utterance: x_UD float32; start_U, fire_U float32 in fractional steps; None where they are not known."""

    x_UD: torch.Tensor
    start_U: torch.Tensor | None = None
    fire_U: torch.Tensor | None = None
    quantity: float | None = None

    def __post_init__(self) -> None:
        ensure(self.x_UD.dim() == 2, f"Units: expected [U, D], found {tuple(self.x_UD.shape)}")
        for name, times in (("start", self.start_U), ("fire", self.fire_U)):
            found = None if times is None else tuple(times.shape)
            ensure(found in (None, (len(self.x_UD),)), f"Units: {name} {found} for {len(self.x_UD)} units")


def pad_units(units: Sequence[Units]) -> Memory:
    """Units of several utterances, right-padded with zeros: x_BND [B, U, D], lens_B."""
    lens_B = torch.tensor([len(one.x_UD) for one in units])
    return Memory(torch.nn.utils.rnn.pad_sequence([one.x_UD for one in units], batch_first=True), lens_B)


def speed_id(utterance_id: str, speed: float) -> str:
    """The id of an utterance at a speed, as `xllm-speech features --speeds` names it."""
    return utterance_id if speed == 1.0 else f"sp{speed:g}-{utterance_id}"


def hash_manifest(path: str | Path) -> str:
    """SHA-256 over the lines of a manifest, gzip or plain alike."""
    digest = hashlib.sha256()
    for _, line in numbered_lines(path):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def write_shard(
    folder: Path, name: str, units: Iterable[tuple[str, Units]], dtype: str = "float32"
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Write the archives of a shard into `folder`, each atomically; returns its rows of the index and sizes in bytes."""
    rows: list[dict[str, Any]] = []
    with atomic_write(folder / f"units.{name}.ark", "wb") as x_stream, \
            atomic_write(folder / f"times.{name}.ark", "wb") as times_stream:
        for utterance_id, one in units:
            assert one.start_U is not None
            assert one.fire_U is not None
            times_U2 = torch.stack([one.start_U, one.fire_U], 1).float().numpy()
            row: dict[str, Any] = {"id": utterance_id, "shard": name, "count": len(one.x_UD), "quantity": one.quantity}
            head = len(f"{utterance_id} ".encode())
            row["units_at"], row["times_at"] = x_stream.tell() + head, times_stream.tell() + head
            if dtype == "float16":  # Kaldi's own matrices know no half precision
                half_UD = one.x_UD.half()
                if not torch.isfinite(half_UD).all():
                    largest = float(one.x_UD.abs().max())
                    raise DataError(f"{utterance_id}: units up to {largest:.3g} do not fit into float16; store float32")
                kaldiio.save_ark(x_stream, {utterance_id: half_UD.numpy()}, write_function="numpy")
            else:
                kaldiio.save_ark(x_stream, {utterance_id: one.x_UD.float().numpy()})
            kaldiio.save_ark(times_stream, {utterance_id: times_U2})
            rows.append(row)
    return rows, {kind: (folder / f"{kind}.{name}.ark").stat().st_size for kind in ("units", "times")}


def finish_cache(
    out: Path, key: UnitKey, rows: Iterable[dict[str, Any]], sizes: dict[str, dict[str, int]], width: int, dtype: str,
    speeds: Sequence[float], manifests: Sequence[tuple[str, str]], more_counts: dict[str, int], more: dict[str, Any],
) -> None:
    """Write the lists over all shards and, last, units.json.

    sizes: bytes of the archives by shard. manifests: (path, hash) of what the cache was made of. more_counts, more:
    further counts and entries of units.json.
    """
    counts = {"utterances": 0, "units": 0}
    lists: dict[str, list[str]] = {"units": [], "times": []}
    with atomic_write(out / INDEX_NAME) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            counts["utterances"] += 1
            counts["units"] += row["count"]
            for kind, lines in lists.items():
                ark = out / SHARDS_NAME / f"{kind}.{row['shard']}.ark"
                lines.append(f"{row['id']} {ark}:{row[f'{kind}_at']}\n")
    for kind, lines in lists.items():
        with atomic_write(out / f"{kind}.scp") as stream:
            stream.writelines(sorted(lines, key=lambda line: line.encode()))
    write_json(
        out / SUMMARY_NAME,
        {
            "format": FORMAT, **asdict(key), "width": width, "dtype": dtype, "speeds": list(speeds),
            "manifests": [{"path": path, "sha256": digest} for path, digest in manifests],
            "counts": {**counts, **more_counts}, "shards": sizes, **more,
        },
    )


class UnitCache:
    """Units by utterance id, in the manifest's order when iterated. Made by `open`; may be copied to loading processes."""

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder = folder
        self.summary = summary
        self.width: int = summary["width"]
        self.speeds: list[float] = summary["speeds"]
        self._shards = list(summary["shards"])
        numbers = {name: number for number, name in enumerate(self._shards)}
        self._places: dict[str, int] = {}
        rows: list[tuple[int, int, int, int]] = []
        quantities: list[float] = []
        for line, row in read_jsonl(folder / INDEX_NAME):
            try:
                rows.append((numbers[row["shard"]], int(row["units_at"]), int(row["times_at"]), int(row["count"])))
                quantities.append(float(row["quantity"]))
                self._places[str(row["id"])] = len(rows) - 1
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{folder / INDEX_NAME}:{line}: not a line of a unit cache ({error!r})") from error
        # Arrays, not objects: a corpus has millions of utterances, and loading processes share this memory.
        self._rows = np.array(rows, dtype=np.int64).reshape(-1, 4)
        self._quantities = np.array(quantities)

    @classmethod
    def open(cls, folder: str | Path, expected: str | UnitKey, cuts: str | Path | None = None) -> UnitCache:
        """Open a cache that belongs to a model.

        Args:
            expected: SHA-256 of the model's weights, or the whole key, which knows the settings too.
            cuts: a manifest that the cache must have been made of, as it is now.

        Raises:
            CheckpointError: not a finished cache, broken, or stale: of another model, other settings or another manifest;
                the text says which.
        """
        folder = Path(folder)
        summary = _read_summary(folder)
        _refuse_stale(folder, summary, expected, cuts)
        for name, sizes in summary["shards"].items():
            for kind in ("units", "times"):
                ark = folder / SHARDS_NAME / f"{kind}.{name}.ark"
                found = ark.stat().st_size if ark.is_file() else None
                if found != sizes[kind]:
                    state = "missing" if found is None else f"{found} bytes"
                    raise CheckpointError(f"{ark}: {state}, written with {sizes[kind]} bytes; {_AGAIN}")
        try:
            cache = cls(folder, summary)
        except DataError as error:
            raise CheckpointError(f"{error}; {_AGAIN}") from error
        stored = summary["counts"]["utterances"]
        if not len(cache) == len(cache._rows) == stored:
            raise CheckpointError(f"{folder / INDEX_NAME}: {len(cache)} utterances, {SUMMARY_NAME} says {stored}; {_AGAIN}")
        return cache

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._places

    def __iter__(self) -> Iterator[tuple[str, Units]]:
        return ((utterance_id, self.get(utterance_id)) for utterance_id in self._places)

    @property
    def ids(self) -> list[str]:
        """Ids of everything stored, copies at other speeds with theirs."""
        return list(self._places)

    def count(self, utterance_id: str, speed: float = 1.0) -> int:
        """Number of units, without reading them; `DataError` as in `get`."""
        return int(self._rows[self._place(utterance_id, speed)][3])

    def get(self, utterance_id: str, speed: float = 1.0) -> Units:
        """Units of an utterance, float32 on the CPU.

        Raises:
            DataError: it is not in the cache (at this speed).
            CheckpointError: the archive is broken there.
        """
        place = self._place(utterance_id, speed)
        shard, units_at, times_at, count = self._rows[place].tolist()
        x_UD = self._read("units", self._shards[shard], units_at, (count, self.width))
        times_U2 = self._read("times", self._shards[shard], times_at, (count, 2))
        return Units(x_UD, times_U2[:, 0], times_U2[:, 1], float(self._quantities[place]))

    def draw(self, utterance_id: str, seed: int, epoch: int) -> Units:
        """Units at the speed drawn for this utterance and epoch among those stored, as training on audio draws it."""
        return self.get(utterance_id, choose_speed(seed, epoch, utterance_id, self.speeds))

    def _place(self, utterance_id: str, speed: float) -> int:
        name = speed_id(utterance_id, speed)
        place = self._places.get(name)
        if place is None:
            raise DataError(
                f"{self.folder}: no units of `{name}` among {len(self)} (speeds {self.speeds}); "
                "rejected.jsonl there tells what could not be read, another manifest needs its own cache"
            )
        return place

    def _read(self, kind: str, shard: str, offset: int, shape: tuple[int, int]) -> torch.Tensor:
        if shape[0] == 0:  # Kaldi's empty matrix has no width
            return torch.zeros(shape)
        ark = self.folder / SHARDS_NAME / f"{kind}.{shard}.ark"
        try:
            with open(ark, "rb") as stream:
                stream.seek(offset)
                if not stream.read(3).startswith(ARCHIVE_MARKS):
                    raise ValueError("no matrix at this place")
                stream.seek(offset)
                matrix = np.asarray(read_kaldi(stream))
        except Exception as error:  # kaldiio asserts, numpy and struct have their own exceptions
            raise CheckpointError(f"{ark}:{offset}: broken ({str(error) or type(error).__name__}); {_AGAIN}") from error
        if matrix.shape != shape or not np.isfinite(matrix).all():
            raise CheckpointError(f"{ark}:{offset}: broken (shape {matrix.shape}, expected {shape}, all finite); {_AGAIN}")
        return torch.from_numpy(matrix.astype(np.float32))  # always a copy: kaldiio's memory is read-only


_AGAIN = "remove the folder and make it again with `xllm-speech units`"


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY_NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file: not a unit cache, or not finished; `xllm-speech units` makes or ends one")
    try:
        summary = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}; {_AGAIN}") from error
    found = summary.get("format") if isinstance(summary, dict) else type(summary).__name__
    if found != FORMAT:
        raise CheckpointError(f"{path}: format `{found}`, expected `{FORMAT}`")
    needed = [field.name for field in dataclasses.fields(UnitKey)]
    needed += ["width", "dtype", "speeds", "manifests", "counts", "shards"]
    if missing := [name for name in needed if name not in summary]:
        raise CheckpointError(f"{path}: lacks `{missing[0]}`; {_AGAIN}")
    return summary


def _refuse_stale(folder: Path, summary: dict[str, Any], expected: str | UnitKey, cuts: str | Path | None) -> None:
    wanted = {"model_sha256": expected} if isinstance(expected, str) else asdict(expected)
    if summary["model_sha256"] != wanted["model_sha256"]:
        raise CheckpointError(
            f"{folder}: stale: units of the model with sha256 {str(summary['model_sha256'])[:12]}, "
            f"this one is {wanted['model_sha256'][:12]}; make them anew with `xllm-speech units`"
        )
    for name, value in wanted.items():
        if summary[name] != value:
            raise CheckpointError(
                f"{folder}: stale: made with {name} {summary[name]}, the model now has {value}; "
                "make it anew with `xllm-speech units`"
            )
    if cuts is not None and hash_manifest(cuts) not in [row["sha256"] for row in summary["manifests"]]:
        raise CheckpointError(
            f"{folder}: stale: not made of {cuts} as it is now, but of "
            f"{', '.join(row['path'] for row in summary['manifests'])}; make it anew with `xllm-speech units`"
        )


@dataclass(frozen=True)
class ReleasedEntry:
    """One example of the authors' released speech files: its id, the file of units, the texts and the picture it names."""

    id: str
    path: str
    text: str
    image: str | None = None


# In the released files: speech recognition, multimodal recognition, answers to spoken questions.
TEXT_KEYS = ("target_text", "question_text", "answer_text")


class ReleasedUnits:
    """Units in the authors' released layout: a JSON array of objects with `speech_feats_path` (.npy [L, D]) and a text.

    The id is `utterance_id`, else the file's name without suffix. The files are found as named, from the working
    directory or from the JSON's folder and its parents, or by their bare name in `folder`.

    Args:
        path: the JSON file. folder: where the .npy files are now. width: D.

    Raises:
        DataError: the file is no such array; names the entry.
    """

    def __init__(self, path: str | Path, folder: str | Path | None = None, width: int = 512) -> None:
        self.path, self.width = Path(path), width
        self.folder = None if folder is None else Path(folder)
        self._finder = PathFinder(self.path.parent)
        value = read_json(path)
        if not isinstance(value, list):
            raise DataError(f"{path}: expected a JSON array of objects, found {type(value).__name__}")
        self.entries = [self._entry(number, row) for number, row in enumerate(value, 1)]
        self._paths: dict[str, str] = {}
        for number, entry in enumerate(self.entries, 1):
            if self._paths.setdefault(entry.id, entry.path) != entry.path:
                raise DataError(f"{path}: entry {number}: `{entry.id}` names {entry.path}, before it {self._paths[entry.id]}")

    def _entry(self, number: int, row: Any) -> ReleasedEntry:
        file = row.get("speech_feats_path") if isinstance(row, dict) else None
        if not isinstance(file, str) or not file:
            raise DataError(f"{self.path}: entry {number}: no `speech_feats_path`")
        texts = [row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)]
        if not texts:
            raise DataError(f"{self.path}: entry {number}: none of {', '.join(TEXT_KEYS)}")
        return ReleasedEntry(str(row.get("utterance_id") or Path(file).stem), file, texts[0], row.get("image"))

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._paths

    def __iter__(self) -> Iterator[ReleasedEntry]:
        return iter(self.entries)

    def get(self, utterance_id: str) -> Units:
        """Units of an utterance, without times. `DataError`: unknown id, or a file that is absent or not [L, D] numbers."""
        if utterance_id not in self._paths:
            raise DataError(f"{self.path}: no utterance `{utterance_id}` among {len(self)}")
        file = self._finder.find(self._paths[utterance_id], probe=True)
        if self.folder is not None and not Path(file).is_file():
            file = str(self.folder / Path(file).name)
        try:
            matrix = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"{utterance_id}: {file}: unreadable units ({reason})") from error
        shape = getattr(matrix, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] != self.width or not shape[0]:
            raise DataError(f"{utterance_id}: {file}: shape {shape}, expected [L, {self.width}] with L at least 1")
        if matrix.dtype.kind != "f" or not np.isfinite(matrix).all():
            raise DataError(f"{utterance_id}: {file}: holds {matrix.dtype} values that are not all finite numbers")
        return Units(torch.from_numpy(matrix.astype(np.float32)))
