"""Filling a unit cache (`datasets.units`): the frozen encoder and CIF over whole manifests, once.

Work goes shard by shard: a shard is finished when its json stands, and a finished one is not computed again, so that a
killed run goes on where it was. Whatever decides the units is in the shard's fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.errors import CheckpointError, DataError, UserError
from xllm_speech.base.files import read_json, write_json
from xllm_speech.base.header import run_header
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.datasets.asr import pad_features
from xllm_speech.datasets.units import (
    DTYPES,
    SHARDS_NAME,
    SUMMARY_NAME,
    UnitCache,
    UnitKey,
    Units,
    finish_cache,
    hash_manifest,
    speed_id,
    write_shard,
)
from xllm_speech.features.audio import audio_path
from xllm_speech.features.fbank import load_features
from xllm_speech.infer.asr import batches_by_length
from xllm_speech.manifests.cuts import CUTS_NAME, REJECTED_NAME, load_cuts
from xllm_speech.models.checkpoints import WEIGHTS, AsrCheckpoint, load_asr

# Small enough that a kill costs little and a small set keeps several processes busy.
SHARD_CUTS = 500
# How many utterances the comparison of reading and computing takes.
SAMPLE_CUTS = 32


@dataclass
class UnitsReport:
    """What `store_units` did. computed: utterances of this run, in computing_sec of wall time; others stood already.

    sample, compute_sec, read_sec: utterances computed again and read back, and how long each took.
    """

    utterances: int = 0
    units: int = 0
    rejected: int = 0
    computed: int = 0
    computing_sec: float = 0.0
    sample: int = 0
    compute_sec: float = 0.0
    read_sec: float = 0.0


def unit_key(checkpoint: AsrCheckpoint) -> UnitKey:
    """What the units of a loaded model depend on."""
    description = checkpoint.description
    return UnitKey.of(
        checkpoint.folder / WEIGHTS, description.model.encoder, description.model.cif.tail_threshold,
        description.features.channel,
    )


class UnitExtractor:
    """Units of cuts by a frozen model.

    Args:
        checkpoint: from `models.checkpoints.load_asr`, in eval mode on `device`.
        batch_sec: audio seconds computed together; the units do not depend on it.
    """

    def __init__(self, checkpoint: AsrCheckpoint, device: torch.device | str = "cpu", batch_sec: float = 60.0) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.batch_sec = batch_sec

    def extract(self, cuts: Sequence[Cut], speed: float = 1.0) -> tuple[list[tuple[str, Units]], Rejects]:
        """(id at this speed, units on the CPU) of all readable cuts in their order, and the others with the reason."""
        found: dict[int, tuple[str, Units]] = {}
        rejects = Rejects()
        for group in batches_by_length(list(enumerate(cuts)), self.batch_sec):
            found.update(self._extract_batch(group, speed, rejects))
        return [found[place] for place in sorted(found)], rejects

    @torch.no_grad()
    def _extract_batch(
        self, group: list[tuple[int, Cut]], speed: float, rejects: Rejects
    ) -> Iterator[tuple[int, tuple[str, Units]]]:
        loaded: list[tuple[int, Cut, torch.Tensor]] = []
        for place, cut in group:
            try:
                feats_TF = load_features(_at_speed(cut, speed), self.checkpoint.description.features.channel)
                if not len(feats_TF):
                    raise DataError(f"{cut.id}: {cut.duration:.4f} s is too short for a single frame")
                loaded.append((place, cut, feats_TF))
            except DataError as error:
                rejects.add(speed_id(cut.id, speed), audio_path(cut), str(error), "unreadable-audio")
        if not loaded:
            return
        _, cif = self.checkpoint.model.find_units(pad_features([feats_TF for *_, feats_TF in loaded]).to(self.device))
        x_BUD, start_BU, fire_BU = (values.float().cpu() for values in (cif.units_BUD, cif.start_BU, cif.fire_BU))
        lens, quantities = cif.lens_B.tolist(), cif.quantity_B.tolist()
        for row, (place, cut, _) in enumerate(loaded):
            end, name = lens[row], speed_id(cut.id, speed)
            units = Units(x_BUD[row, :end], start_BU[row, :end], fire_BU[row, :end], quantities[row])
            if math.isfinite(quantities[row]) and torch.isfinite(units.x_UD).all():
                yield place, (name, units)
            else:
                rejects.add(name, audio_path(cut), f"{cut.id}: the model gives units that are not numbers", "bad-units")


def _at_speed(cut: Cut, speed: float) -> Cut:
    if speed == 1.0:
        return cut
    if not cut.has_recording:
        raise DataError(f"{cut.id}: stored features without a recording cannot change speed")
    cut = cut.drop_features() if cut.has_features else cut
    return cut.perturb_speed(speed, affix_id=False)


@dataclass(frozen=True)
class _Shard:
    """One piece of work: a list of cuts as JSON, at one speed."""

    name: str
    cuts: list[dict[str, Any]]
    speed: float
    folder: Path
    key: UnitKey
    dtype: str

    @property
    def fingerprint(self) -> str:
        text = json.dumps([self.cuts, self.speed, asdict(self.key), self.dtype], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @property
    def record(self) -> Path:
        return self.folder / f"units.{self.name}.json"


def store_units(
    model: str | Path, cuts: Sequence[str | Path], out_dir: str | Path, speeds: Sequence[float] = (1.0,),
    dtype: str = "float32", batch_sec: float = 60.0, device: torch.device | str = "cpu", jobs: int = 1,
    max_rejected: float = DEFAULT_MAX_SHARE, on_progress: Callable[[int], None] | None = None,
) -> UnitsReport:
    """Compute the units of all cuts at all speeds into `out_dir`, a unit cache (`datasets.units`).

    Stands a cache of the same model, settings and manifests there, nothing is computed; one of other manifests keeps the
    shards that are the same; anything else is replaced.

    Args:
        model: model directory or experiment. cuts: manifests, each a file or a folder with cuts.jsonl.gz.
        jobs: processes, each with its own copy of the model. on_progress: told the number of utterances just finished.

    Raises:
        ConfigError: an argument out of its range.
        UserError: one of several processes died.
        CheckpointError: the model cannot be loaded.
        DataError: a manifest is absent or empty, or more than `max_rejected` could not be read.
    """
    names = {speed_id("", speed) for speed in speeds}
    require(bool(speeds) and all(0.5 <= speed <= 2 for speed in speeds) and len(names) == len(speeds), (
        f"speeds {list(speeds)}: at least one, each once, within 0.5 .. 2"
    ))
    require_choice("dtype", dtype, DTYPES)
    require(batch_sec > 0, f"batch_sec {batch_sec} must be positive")
    require(jobs >= 1, f"jobs {jobs} must be at least 1")
    checkpoint = load_asr(model, device)
    extractor = UnitExtractor(checkpoint, device, batch_sec)
    key, out = unit_key(checkpoint), Path(out_dir)
    paths = [path / CUTS_NAME if path.is_dir() else path for path in map(Path, cuts)]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such manifest")
    manifests = [(str(path), hash_manifest(path)) for path in paths]
    cache, report = _standing(out, key, speeds, dtype, manifests), UnitsReport()
    if cache is None:
        # From here on the shards change: until all are finished, nobody may read them.
        (out / SUMMARY_NAME).unlink(missing_ok=True)
        run = _Run(out, key, paths, speeds, dtype, Rejects(max_rejected))
        run.compute(extractor, jobs, report, on_progress)
        run.finish(checkpoint, manifests)
        cache = UnitCache.open(out, key)
    counts = cache.summary["counts"]
    report.utterances, report.units, report.rejected = counts["utterances"], counts["units"], counts["rejected"]
    _measure(cache, extractor, paths, report)
    return report


def _standing(
    out: Path, key: UnitKey, speeds: Sequence[float], dtype: str, manifests: Sequence[tuple[str, str]]
) -> UnitCache | None:
    """The cache in `out` if it is finished, whole and what is asked for."""
    try:
        cache = UnitCache.open(out, key)
    except CheckpointError:
        return None
    summary = cache.summary
    digests = [row["sha256"] for row in summary["manifests"]]
    same = summary["speeds"] == list(speeds) and summary["dtype"] == dtype
    return cache if same and digests == [digest for _, digest in manifests] else None


class _Run:
    """One filling of a cache; `names` are its shards in order."""

    def __init__(
        self, out: Path, key: UnitKey, paths: Sequence[Path], speeds: Sequence[float], dtype: str, rejects: Rejects
    ) -> None:
        self.out, self.key, self.paths, self.speeds, self.dtype, self.rejects = out, key, paths, speeds, dtype, rejects
        self.folder = out / SHARDS_NAME
        self.names: list[str] = []

    def compute(
        self, extractor: UnitExtractor, jobs: int, report: UnitsReport, on_progress: Callable[[int], None] | None
    ) -> None:
        """Compute all shards that do not stand yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        with _ordered_map(extractor, jobs) as mapped:
            for seen, computed in mapped(self._shards()):
                report.computed += computed
                if on_progress is not None:
                    on_progress(seen)
        report.computing_sec = time.perf_counter() - begin

    def _shards(self) -> Iterator[_Shard]:
        rows = self._rows()
        for number in itertools.count():
            block = list(itertools.islice(rows, SHARD_CUTS))
            if not block:
                return
            for speed in self.speeds:
                name = f"{number}" if speed == 1.0 else f"sp{speed:g}.{number}"
                self.names.append(name)
                yield _Shard(name, block, speed, self.folder, self.key, self.dtype)

    def _rows(self) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        for path in self.paths:
            for cut in load_cuts(path, self.rejects):
                names = {speed_id(cut.id, speed) for speed in self.speeds}
                if names & seen:
                    self.rejects.add(cut.id, path, "an utterance id occurs twice", "duplicate-id")
                    continue
                seen |= names
                value = cut.to_dict()
                (value.get("custom") or {}).pop("dataloading_info", None)
                yield value

    def finish(self, checkpoint: AsrCheckpoint, manifests: Sequence[tuple[str, str]]) -> None:
        """Write rejected.jsonl, check its share, and join the shards."""
        stored, sizes = 0, {}
        for name, record in zip(self.names, self._records(), strict=True):
            self.rejects.rows += record["rejected"]
            stored += len(record["rows"])
            sizes[name] = record["bytes"]
        self.rejects.write(self.out / REJECTED_NAME)
        self.rejects.check(stored + len(self.rejects.rows), self.out / REJECTED_NAME)
        if not stored:
            raise DataError(f"{', '.join(path for path, _ in manifests)}: no utterance to store, {self.rejects.summary()}")
        finish_cache(
            self.out, self.key, (row for record in self._records() for row in record["rows"]), sizes,
            checkpoint.description.model.encoder.width, self.dtype, self.speeds, manifests,
            {"rejected": len(self.rejects.rows)}, {"model": str(checkpoint.folder), "header": run_header()},
        )
        known = {file for name in self.names for file in _shard_files(name)}
        for path in self.folder.iterdir():  # what a killed run or another input left behind
            if path.name not in known and path.name.lstrip(".").startswith(("units.", "times.")):
                path.unlink()

    def _records(self) -> Iterator[dict[str, Any]]:
        """The records of the shards, one at a time: their rows together would not fit into memory for a large corpus."""
        return (read_json(self.folder / f"units.{name}.json") for name in self.names)


def _shard_files(name: str) -> list[str]:
    return [f"units.{name}.ark", f"times.{name}.ark", f"units.{name}.json"]


def _compute_shard(extractor: UnitExtractor, shard: _Shard) -> tuple[int, int]:
    """(utterances of the shard, those computed now)."""
    fingerprint = shard.fingerprint
    if _stands(shard, fingerprint):
        return len(shard.cuts), 0
    shard.record.unlink(missing_ok=True)
    cuts = [deserialize_item(json.loads(json.dumps(value))) for value in shard.cuts]  # which takes its argument apart
    units, rejects = extractor.extract(cuts, shard.speed)
    rows, sizes = write_shard(shard.folder, shard.name, units, shard.dtype)
    write_json(shard.record, {"fingerprint": fingerprint, "bytes": sizes, "rejected": rejects.rows, "rows": rows})
    return len(shard.cuts), len(shard.cuts)


def _stands(shard: _Shard, fingerprint: str) -> bool:
    """Whether the shard was finished with the same input, and its archives are whole."""
    try:
        record = read_json(shard.record)
        arks = {kind: shard.folder / f"{kind}.{shard.name}.ark" for kind in record["bytes"]}
        return record["fingerprint"] == fingerprint and all(
            ark.stat().st_size == record["bytes"][kind] for kind, ark in arks.items()
        )
    except (DataError, OSError, KeyError, TypeError):  # absent, or not ours: made anew
        return False


# The model of a worker process, loaded once by `_start_worker`.
_worker: list[UnitExtractor] = []


def _start_worker(folder: Path, device: str, batch_sec: float) -> None:
    torch.set_num_threads(1)
    _worker.append(UnitExtractor(load_asr(folder, device), device, batch_sec))


def _compute_in_worker(shard: _Shard) -> tuple[int, int]:
    return _compute_shard(_worker[0], shard)


@contextlib.contextmanager
def _ordered_map(
    extractor: UnitExtractor, jobs: int
) -> Iterator[Callable[[Iterator[_Shard]], Iterable[tuple[int, int]]]]:
    """An ordered map of `_compute_shard` over `jobs` processes; in this process for one job.

    Raises:
        UserError: a process died.
    """
    if jobs == 1:
        yield lambda shards: (_compute_shard(extractor, shard) for shard in shards)
        return
    # Spawned, not forked: this process has run torch threads, and may have CUDA open.
    # An executor, not a pool, which would wait for ever for the work of a process that died.
    arguments = (extractor.checkpoint.folder, str(extractor.device), extractor.batch_sec)
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker, arguments)
    try:
        # A few at a time: map by itself would take in the whole manifest at once.
        yield lambda shards: itertools.chain.from_iterable(
            executor.map(_compute_in_worker, block) for block in iter(lambda: list(itertools.islice(shards, 2 * jobs)), [])
        )
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {jobs} processes died, perhaps for want of memory; start again with fewer jobs or a smaller batch_sec: "
            "finished shards are kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _measure(cache: UnitCache, extractor: UnitExtractor, paths: Sequence[Path], report: UnitsReport) -> None:
    """Compute a sample of the cache once more, and read it: what the cache saves in every epoch."""
    speed = cache.speeds[0]
    every = itertools.chain.from_iterable(load_cuts(path, Rejects()) for path in paths)
    sample = list(itertools.islice((cut for cut in every if speed_id(cut.id, speed) in cache), SAMPLE_CUTS))
    extractor.extract(sample[:1], speed)  # the first pass sets up libraries
    begin = time.perf_counter()
    extractor.extract(sample, speed)
    between = time.perf_counter()
    for cut in sample:
        cache.get(cut.id, speed)
    report.sample, report.compute_sec, report.read_sec = len(sample), between - begin, time.perf_counter() - between
