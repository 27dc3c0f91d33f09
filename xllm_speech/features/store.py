"""Features computed once and kept in Kaldi archives, with the cuts that point into them (data.md, Manifests).

Work goes shard by shard: a shard is finished when its cuts file stands, and finished shards are not computed again, so
that a killed run goes on where it was.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaldiio
import torch
from lhotse import CutSet, Features
from lhotse.cut import Cut, MixedCut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write, numbered_lines, read_json, write_json, write_jsonl
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.base.units import FRAME_SHIFT_MS, MEL_BINS
from xllm_speech.features.audio import MIX, audio_path
from xllm_speech.features.cmvn import CmvnAccumulator, CmvnStats
from xllm_speech.features.fbank import KALDI_STORAGE, load_features

logger = logging.getLogger(__name__)

# Small enough that a kill costs little and a small set keeps several processes busy.
SHARD_CUTS = 500


@dataclass(frozen=True)
class _Shard:
    """One piece of work: a list of cuts as JSON, at one speed."""

    name: str
    cuts: list[dict[str, Any]]
    speed: float
    folder: Path
    channel: str | int


def compute_features(
    cuts: Iterable[Cut], out_dir: str | Path, jobs: int = 1, speeds: Sequence[float] = (1.0,),
    channel: str | int = MIX, max_rejected: float = DEFAULT_MAX_SHARE, on_progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Compute fbank features of all cuts at all speeds into `out_dir`; returns counts of `cuts` and `rejected`.

    Written: ark/feats.N.ark and .scp per shard, feats.scp over all, cuts.jsonl.gz with `Features` attached (storage type
    `kaldiio`; `features.fbank.load_stored` reads them) and rejected.jsonl. Copies at another speed have ids `sp0.9-<id>`.
    A finished run with the same input is left as it is; anything else in `out_dir` from another input is computed anew.

    Args:
        jobs: processes. channel: see features.audio.load_samples. on_progress: told the number of cuts just finished.

    Raises:
        DataError: more than `max_rejected` could not be read; rejected.jsonl tells which.
    """
    out = Path(out_dir)
    shards_dir = out / "ark"
    shards_dir.mkdir(parents=True, exist_ok=True)
    names: list[str] = []

    def shards() -> Iterator[_Shard]:
        rows = (_plain(cut) for cut in cuts)
        for number in itertools.count():
            block = list(itertools.islice(rows, SHARD_CUTS))
            if not block:
                return
            for speed in speeds:
                name = f"feats.{number}" if speed == 1.0 else f"feats.sp{speed:g}.{number}"
                names.append(name)
                yield _Shard(name, block, speed, shards_dir, channel)

    with _ordered_map(jobs) as mapped:
        for finished in mapped(_compute_shard, shards()):
            if on_progress is not None:
                on_progress(finished)
    return _merge(out, shards_dir, names, max_rejected)


@contextlib.contextmanager
def _ordered_map(jobs: int) -> Iterator[Callable[[Callable[[_Shard], int], Iterator[_Shard]], Iterable[int]]]:
    """An ordered map over `jobs` processes; in this process for one job."""
    if jobs <= 1:
        yield map
        return
    # Spawned, not forked: the caller may have run torch threads already.
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_single_thread) as pool:
        # A few at a time: imap by itself would take in the whole manifest at once.
        yield lambda work, items: itertools.chain.from_iterable(
            pool.imap(work, block) for block in iter(lambda: list(itertools.islice(items, 4 * jobs)), [])
        )


def _single_thread() -> None:
    torch.set_num_threads(1)


def _plain(cut: Cut) -> dict[str, Any]:
    value = cut.to_dict()
    if value.get("custom"):
        value["custom"].pop("dataloading_info", None)
    return value


def _fingerprint(shard: _Shard) -> str:
    text = json.dumps([shard.cuts, shard.speed, str(shard.channel)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _compute_shard(shard: _Shard) -> int:
    done = shard.folder / f"{shard.name}.json"
    fingerprint = _fingerprint(shard)
    if done.is_file() and read_json(done).get("fingerprint") == fingerprint:
        return len(shard.cuts)
    done.unlink(missing_ok=True)
    ark, scp = shard.folder / f"{shard.name}.ark", shard.folder / f"{shard.name}.scp"
    rejects = Rejects()
    rows: list[dict[str, Any]] = []
    positions: list[str] = []
    with atomic_write(ark, "wb") as stream:
        for value in shard.cuts:
            cut = deserialize_item(copy.deepcopy(value))  # which takes its argument apart
            try:
                cut = _perturb(cut, shard.speed)
                feats_TF = load_features(cut, shard.channel)
                if not len(feats_TF):
                    raise DataError(f"{cut.id}: {cut.duration:.4f} s is too short for a single frame")
                if isinstance(cut, MixedCut):
                    raise DataError(f"{cut.id}: mixed cuts cannot carry stored features; save their audio first")
            except DataError as error:
                rejects.add(cut.id, audio_path(cut), str(error), "unreadable-audio")
                continue
            head = f"{cut.id} ".encode()
            position = f"{ark}:{stream.tell() + len(head)}"
            kaldiio.save_ark(stream, {cut.id: feats_TF.numpy()})
            rows.append(_plain(_attach(cut, feats_TF.shape[0], position)))
            positions.append(f"{cut.id} {position}\n")
    with atomic_write(scp) as stream:
        stream.writelines(positions)
    write_jsonl(shard.folder / f"{shard.name}.cuts.jsonl", rows)
    rejects.write(shard.folder / f"{shard.name}.rejected.jsonl")
    write_json(done, {"fingerprint": fingerprint, "cuts": len(rows), "rejected": len(rejects.rows)})
    return len(shard.cuts)


def _perturb(cut: Cut, speed: float) -> Cut:
    if speed == 1.0:
        return cut
    if cut.has_features and not cut.has_recording:
        raise DataError(f"{cut.id}: stored features without a recording cannot change speed")
    cut = cut.drop_features() if cut.has_features else cut
    return cut.perturb_speed(speed, affix_id=False).with_id(f"sp{speed:g}-{cut.id}")


def _attach(cut: Cut, frames: int, position: str) -> Cut:
    features = Features(
        type="kaldi-fbank", num_frames=frames, num_features=MEL_BINS, frame_shift=FRAME_SHIFT_MS / 1000,
        sampling_rate=cut.sampling_rate, start=cut.start, duration=cut.duration, storage_type=KALDI_STORAGE,
        storage_path=position, storage_key=cut.id, channels=cut.channel,
        recording_id=cut.recording_id if cut.has_recording else cut.id,
    )
    return fastcopy(cut, features=features)


def _merge(out: Path, shards_dir: Path, names: Sequence[str], max_rejected: float) -> dict[str, int]:
    """Join the shards' lists; feats.scp and cuts.jsonl.gz come last."""
    rejects = Rejects(max_rejected)
    for name in names:
        for _, line in numbered_lines(shards_dir / f"{name}.rejected.jsonl"):
            rejects.rows.append(json.loads(line))
    rejects.write(out / "rejected.jsonl")
    count = sum(int(read_json(shards_dir / f"{name}.json")["cuts"]) for name in names)
    rejects.check(count + len(rejects.rows), out / "rejected.jsonl")
    positions = sorted(
        itertools.chain.from_iterable((line for _, line in numbered_lines(shards_dir / f"{name}.scp")) for name in names),
        key=lambda line: line.encode("utf-8"),
    )
    with atomic_write(out / "feats.scp") as stream:
        stream.writelines(line + "\n" for line in positions)
    with atomic_write(out / "cuts.jsonl.gz") as stream:
        for name in names:
            stream.writelines(line + "\n" for _, line in numbered_lines(shards_dir / f"{name}.cuts.jsonl"))
    known = {f"{name}{suffix}" for name in names for suffix in (".ark", ".scp", ".json", ".cuts.jsonl", ".rejected.jsonl")}
    for path in shards_dir.iterdir():  # what a killed run or another input left behind
        if path.name not in known and path.name.lstrip(".").startswith("feats."):
            path.unlink()
    logger.info("%s: features of %d cuts, %s", out, count, rejects.summary())
    return {"cuts": count, "rejected": len(rejects.rows)}


def compute_cmvn(cuts: CutSet, channel: str | int = MIX) -> CmvnStats:
    """Statistics over the features of all cuts (stored or computed); unreadable ones are skipped with a warning."""
    accumulator = CmvnAccumulator()
    for cut in cuts:
        try:
            accumulator.add(load_features(cut, channel))
        except DataError as error:
            logger.warning("CMVN: left out %s", error)
    return accumulator.result()
