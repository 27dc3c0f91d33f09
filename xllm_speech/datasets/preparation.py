"""From what the user names to what a run trains on: checked cuts, held-out cuts, tokens and CMVN statistics in one folder.

Everything is written once into `OUT/data` and read from there ever after, so that a resumed run sees the same data.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut, MixedCut

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.base.files import read_json, write_json
from xllm_speech.base.rejects import Rejects
from xllm_speech.datasets.config import AUTO, DataConfig
from xllm_speech.features.augment import hashed_fraction
from xllm_speech.features.cmvn import CmvnAccumulator, CmvnStats
from xllm_speech.features.fbank import load_features
from xllm_speech.manifests.cuts import load_cuts, map_in_threads, save_cuts, utterance_of
from xllm_speech.manifests.speech import resolve_speech_data
from xllm_speech.text.normalise import normalise
from xllm_speech.text.tokens import TokenTable

logger = logging.getLogger(__name__)

TRAIN_NAME = "train_cuts.jsonl.gz"
DEV_NAME = "dev_cuts.jsonl.gz"
TOKENS_NAME = "tokens"
CMVN_NAME = "cmvn.json"
REJECTED_NAME = "rejected.jsonl"
# Written last: where it stands, everything else does.
SUMMARY_NAME = "data.json"

# A held-out set larger than this tells no more and costs time at every evaluation.
MAX_HELD_OUT = 2000

# Settings that decide what is prepared; the others may change between a run and its resumption.
PREPARED_KEYS = (
    "train", "dev", "dev_share", "tokens", "token_kind", "vocab_size", "cmvn", "cmvn_utterances", "min_sec", "max_sec",
    "channel", "seed",
)


def prepare_data(config: DataConfig, folder: Path) -> None:
    """Fill `folder` (OUT/data), or leave it alone when it was filled with the same settings before.

    Raises:
        DataError: no training data, too much of it broken, or a folder that was filled with other settings.
    """
    settings = {key: getattr(config, key) for key in PREPARED_KEYS}
    summary = folder / SUMMARY_NAME
    if summary.is_file():
        _refuse_other_settings(summary, settings)
        logger.info("%s: prepared before, used as it is", folder)
        return
    if config.train is None:
        raise DataError("data.train is not set: name a cuts file, a folder with cuts.jsonl.gz or a Kaldi data directory")
    folder.mkdir(parents=True, exist_ok=True)
    counts = _Preparation(config, folder).run(Path(config.train))
    write_json(summary, {"settings": settings, "counts": counts})


def _refuse_other_settings(summary: Path, settings: dict[str, Any]) -> None:
    before = read_json(summary).get("settings", {})
    other = [f"{key} was {before.get(key)!r}, is {value!r}" for key, value in settings.items() if before.get(key) != value]
    if other:
        raise DataError(
            f"{summary.parent}: prepared with other settings ({'; '.join(other)}); "
            "take another --out, or remove that folder to prepare anew"
        )


class _Preparation:
    """One preparation; `broken` counts towards max_rejected, `left_out` holds what the settings exclude."""

    def __init__(self, config: DataConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.broken = Rejects(config.max_rejected)
        self.left_out = Rejects()
        self.rates: Counter[int] = Counter()

    def run(self, train: Path) -> dict[str, Any]:
        """Write everything but the summary; returns the counts for it."""
        accepted = self.folder / ".accepted.jsonl.gz"
        try:
            count, _ = self._accept(train, "train", accepted)
            total = count + len(self.broken.rows) + len(self.left_out.rows)
            self._check(total)
            held_out: set[str] = set()
            if self.config.dev is None:
                held_out = self._choose_held_out(accepted, count)
            stats, unreadable = self._measure(accepted, count, held_out)
            self._check(total)
            chosen = load_cuts(accepted)
            train_count = save_cuts(
                (cut for cut in chosen if cut.id not in held_out and cut.id not in unreadable), self.folder / TRAIN_NAME
            )
            dev_count = self._write_dev(accepted, held_out, unreadable)
        finally:
            accepted.unlink(missing_ok=True)
        if not train_count:
            raise DataError(f"{train}: nothing left to train on ({self.broken.summary()}; {self._left_out_summary()})")
        stats.save(self.folder / CMVN_NAME)
        table = self._make_table()
        unknown = self._count_unknown(table)
        self._say_what_was_found(train, train_count, dev_count, table)
        return {
            "train": train_count, "dev": dev_count, "held_out": bool(held_out), "broken": self.broken.counts,
            "left_out": self.left_out.counts, "dev_unknown": unknown, "sample_rates_hz": dict(self.rates),
            "cmvn_frames": stats.frames, "tokens": table.size,
        }

    def _accept(self, path: Path, name: str, target: Path) -> tuple[int, set[str]]:
        """Write the usable cuts of `path`; the others are noted with a reason."""
        source = resolve_speech_data(path, self.folder / f"kaldi_{name}", rejects=self.broken)
        seen: set[str] = set()

        def usable() -> Iterator[Cut]:
            for cut in source:
                if cut.id in seen:
                    self.broken.add(cut.id, path, "an utterance id occurs twice", "duplicate-id")
                    continue
                seen.add(cut.id)
                if self._judge(cut, path):
                    yield cut

        count = save_cuts(usable(), target)
        return count, seen

    def _judge(self, cut: Cut, path: Path) -> bool:
        try:
            utterance = utterance_of(cut)
        except (DataError, SeamError, ValueError) as error:
            self.broken.add(cut.id, path, str(error), "bad-cut")
            return False
        missing = next((file for file in _files(cut) if not os.path.exists(file)), None)
        if missing is not None:
            self.broken.add(cut.id, missing, f"{missing}: no such file", "missing-audio")
        elif not cut.has_features and not cut.has_recording:
            self.broken.add(cut.id, path, "neither a recording nor features", "no-audio")
        elif utterance.text is None:
            self.broken.add(cut.id, path, "no transcript", "no-transcript")
        elif not normalise(utterance.text):
            reason = f"transcript `{utterance.text}` has no character to recognise"
            self.broken.add(cut.id, path, reason, "empty-transcript")
        elif not self.config.min_sec <= cut.duration <= self.config.max_sec:
            kind = "too-short" if cut.duration < self.config.min_sec else "too-long"
            limit = f"outside min_sec {self.config.min_sec} .. max_sec {self.config.max_sec}"
            self.left_out.add(cut.id, path, f"{cut.duration:.3f} s, {limit}", kind)
        else:
            if self.config.image_size and utterance.image and not os.path.exists(utterance.image):
                self.left_out.add(cut.id, utterance.image, "no such picture; used without it", "picture-missing")
            if cut.has_recording and not cut.has_features:
                self.rates[cut.sampling_rate] += 1
            return True
        return False

    def _choose_held_out(self, accepted: Path, count: int) -> set[str]:
        """About dev_share of the utterances: those with the smallest hashes, at least one of two or more."""
        wanted = min(MAX_HELD_OUT, max(1, round(count * self.config.dev_share)), count - 1)
        ranked = sorted((hashed_fraction("dev", self.config.seed, cut.id), cut.id) for cut in load_cuts(accepted))
        held_out = {utterance_id for _, utterance_id in ranked[: max(0, wanted)]}
        logger.info("no dev set named: %d of %d utterances are held out (seed %d)", len(held_out), count, self.config.seed)
        return held_out

    def _measure(self, accepted: Path, count: int, held_out: set[str]) -> tuple[CmvnStats, set[str]]:
        """CMVN statistics, and the ids found unreadable on the way."""
        if self.config.cmvn != AUTO:
            return CmvnStats.load(self.config.cmvn), set()
        share = min(1.0, self.config.cmvn_utterances / max(1, count))
        sample = (
            cut for cut in load_cuts(accepted)
            if cut.id not in held_out and hashed_fraction("cmvn", self.config.seed, cut.id) < share
        )
        accumulator = CmvnAccumulator()
        unreadable: set[str] = set()

        def load(cut: Cut) -> Any:
            try:
                return load_features(cut, self.config.channel)
            except DataError as error:
                return error

        for cut, feats in map_in_threads(load, sample, jobs=min(4, os.cpu_count() or 1), window=64):
            if isinstance(feats, DataError):
                self.broken.add(cut.id, next(iter(_files(cut)), str(accepted)), str(feats), "unreadable-audio")
                unreadable.add(cut.id)
            else:
                accumulator.add(feats)
        return accumulator.result(), unreadable

    def _write_dev(self, accepted: Path, held_out: set[str], unreadable: set[str]) -> int:
        target = self.folder / DEV_NAME
        if self.config.dev is None:
            return save_cuts((cut for cut in load_cuts(accepted) if cut.id in held_out), target)
        train_ids = {cut.id for cut in load_cuts(accepted)} - unreadable
        before = len(self.broken.rows), len(self.left_out.rows)
        count, ids = self._accept(Path(self.config.dev), "dev", target)
        if both := ids & train_ids:
            logger.warning("%d dev utterances are in the training set too, such as %s", len(both), sorted(both)[0])
        dev_broken = Rejects(self.config.max_rejected)
        dev_broken.rows = self.broken.rows[before[0] :]
        self.broken.write(self.folder / REJECTED_NAME)
        dev_broken.check(count + len(dev_broken.rows) + len(self.left_out.rows) - before[1], self.folder / REJECTED_NAME)
        return count

    def _make_table(self) -> TokenTable:
        if self.config.tokens == AUTO:
            texts = _texts(load_cuts(self.folder / TRAIN_NAME))
            table = TokenTable.train(texts, kind=self.config.token_kind, vocab_size=self.config.vocab_size)
        else:
            table = TokenTable.load(self.config.tokens)
        table.save(self.folder / TOKENS_NAME)
        return table

    def _count_unknown(self, table: TokenTable) -> int:
        unknown: Counter[str] = Counter()
        for name in (TRAIN_NAME, DEV_NAME):
            found: Counter[str] = Counter()
            for text in _texts(load_cuts(self.folder / name)):
                found += table.count_unknown(text)
            if found:
                shown = ", ".join(f"{token} {times}" for token, times in found.most_common(5))
                logger.warning("%s: %d characters are not in the token table (%s)", name, found.total(), shown)
            unknown = found
        return unknown.total()

    def _check(self, total: int) -> None:
        path = self.folder / REJECTED_NAME
        rows = Rejects()
        rows.rows = [*self.broken.rows, *self.left_out.rows]
        rows.write(path)
        self.broken.check(total, path)

    def _left_out_summary(self) -> str:
        counts = ", ".join(f"{kind} {number}" for kind, number in self.left_out.counts.items())
        return f"{len(self.left_out.rows)} left out by the settings ({counts})" if counts else "none left out"

    def _say_what_was_found(self, train: Path, train_count: int, dev_count: int, table: TokenTable) -> None:
        self._check(0)  # the list once more, with what the dev set added
        for rate_hz, number in sorted(self.rates.items()):
            logger.info("%d utterances at %d Hz%s", number, rate_hz, "" if rate_hz == 16000 else ", resampled to 16000 Hz")
        logger.info("%s: %d utterances to train on, %d to evaluate, %d tokens", train, train_count, dev_count, table.size)
        if self.broken.rows or self.left_out.rows:
            logger.warning(
                "%s; %s: see %s", self.broken.summary(), self._left_out_summary(), self.folder / REJECTED_NAME
            )


def _files(cut: Cut) -> Iterable[str]:
    """Files a cut needs before it can be loaded: its stored features', else its recording's."""
    tracks = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    for track in tracks:
        if getattr(track, "has_features", False):
            path, colon, offset = str(track.features.storage_path).rpartition(":")
            if track.features.storage_type in ("kaldiio", "numpy_files"):
                yield path if colon and offset.isdigit() else str(track.features.storage_path)
        elif getattr(track, "has_recording", False):
            yield from (str(source.source) for source in track.recording.sources if source.type == "file")


def _texts(cuts: CutSet) -> Iterator[str]:
    for cut in cuts:
        text = utterance_of(cut).text
        if text is not None:
            yield text
