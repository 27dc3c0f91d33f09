"""Batches of conversations for phases 2 and 3: sources mixed by share, the same on every machine, resumable anywhere.

The n-th batch of an epoch is a function of (configuration, manifests, epoch, n): neither the number of processes nor that of
loading processes enters, and skipping n batches gives what drawing and dropping them would.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.datasets.conversation_config import ConversationDataConfig
from xllm_speech.datasets.conversation_sources import ConversationSource
from xllm_speech.datasets.media import load_media
from xllm_speech.datasets.readers import MediaReader
from xllm_speech.prompts.instructions import with_caption, with_instructions
from xllm_speech.records import Conversation, ConversationBatch

logger = logging.getLogger(__name__)

# Of one batch: (source, place in it) of each conversation.
Drawn = list[tuple[int, int]]
SHOWN_REJECTS = 10


class ConversationData:
    """The conversations of a run.

    Args:
        config: see there. readers: from `media.build_readers`. rank: only rank 0 speaks in the log.

    Attributes:
        counts: "train PATH TASK" and "dev PATH TASK" -> number of conversations.

    Raises:
        DataError: a manifest is missing, holds nothing of its tasks, or too many broken lines.
        ConfigError: no source to train on, or cuts without exactly one task.
    """

    def __init__(self, config: ConversationDataConfig, readers: Mapping[str, MediaReader], rank: int = 0) -> None:
        require(bool(config.train), "data.train is needed: the sources of conversations")
        self.config, self.readers = config, readers
        self.train, self.dev = (
            [ConversationSource(source, list(readers), config.max_rejected) for source in sources]
            for sources in (config.train, config.dev)
        )
        self.counts = {
            f"{name} {source.path} {task}": count
            for name, sources in (("train", self.train), ("dev", self.dev)) for source in sources
            for task, count in source.counts.items()
        }
        for source in (*self.train, *self.dev) if rank == 0 else ():
            for row in source.rejects.rows[:SHOWN_REJECTS]:
                logger.warning("left out: %s", row["reason"])
            if len(source.rejects.rows) > SHOWN_REJECTS:
                logger.warning("%s: %s", source.path, source.rejects.summary())
        wanted = config.epoch_batches * config.batch_size or sum(map(len, self.train))
        self.epoch_counts = share_out(wanted, [source.share for source in config.train])

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Batches of one process in an epoch."""
        return max(1, self._total // world_size)

    @property
    def _total(self) -> int:
        return -(-sum(self.epoch_counts) // self.config.batch_size)

    def train_batches(self, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[ConversationBatch]:
        """Batches of one process in one epoch, after the first `skip`.

        The batches of one process alone are dealt out to all: batch n goes to rank n modulo world_size. What is left over in
        the end and does not reach every rank is not drawn in this epoch; where there are fewer batches than ranks, some are
        drawn twice.
        """
        dataset = _Loading(self.train, self.readers, self.config.seed, epoch, train=True)
        plans = _Plans(self, epoch, skip, rank, world_size)
        if not self.config.num_workers:
            return map(dataset.__getitem__, plans)
        # A generator of its own: a loader would draw from the global one.
        return iter(DataLoader(
            dataset, sampler=plans, batch_size=None, num_workers=self.config.num_workers, collate_fn=_as_is,
            generator=torch.Generator(),
        ))

    def dev_batches(self, items_per_source: int) -> Iterator[tuple[str, ConversationBatch]]:
        """(name, batch) of held-out conversations: of each task of each source at most so many, evenly over its manifest.

        The same in every epoch, without augmentation. The name is the task, with the folder of the manifest behind it where
        several sources have the task.
        """
        dataset = _Loading(self.dev, self.readers, self.config.seed, 0, train=False)
        sharing = Counter(task for source in self.dev for task in source.counts)
        used: Counter[str] = Counter()
        for number, source in enumerate(self.dev):
            for task in source.counts:
                name = task if sharing[task] == 1 else f"{task}_{source.path.parent.name}"
                used[name] += 1
                name = name if used[name] == 1 else f"{name}_{used[name]}"
                rows = source.rows(task)
                count = min(items_per_source, len(rows))
                chosen = [int(rows[len(rows) * place // count]) for place in range(count)]
                for batch in _parts([(number, row) for row in chosen], self.config.batch_size):
                    yield name, dataset[batch]

    def draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, place in it) of each conversation of an epoch, int64 [N], in the order in which they are drawn.

        Every source is passed over in an order of its own, a new one for each pass; an epoch goes on where the last one
        stopped, so that nothing comes again before everything came.
        """
        sources_N = self._rng("mix", epoch).permutation(np.repeat(np.arange(len(self.train)), self.epoch_counts))
        rows_N = np.zeros_like(sources_N)
        for number, (source, count) in enumerate(zip(self.train, self.epoch_counts, strict=True)):
            first, size = epoch * count, len(source)
            passes = range(first // size, (first + count - 1) // size + 1)
            orders = [self._rng("pass", number, one).permutation(size) for one in passes]
            if orders:
                start = first - passes.start * size
                rows_N[sources_N == number] = np.concatenate(orders)[start : start + count]
        return sources_N, rows_N

    def draw_pool(self, order: tuple[np.ndarray, np.ndarray], epoch: int, pool: int) -> list[Drawn]:
        """The batches of a pool: conversations of like length together, the batches in random order."""
        size = self.config.pool_batches * self.config.batch_size
        sources, rows = (part[pool * size : (pool + 1) * size].tolist() for part in order)
        drawn = sorted(zip(sources, rows, strict=True), key=lambda one: self._length(*one))
        batches = _parts(drawn, self.config.batch_size)
        return [batches[place] for place in self._rng("pool", epoch, pool).permutation(len(batches))]

    def _rng(self, *words: object) -> np.random.Generator:
        key = "\0".join(map(str, ("conversations", self.config.seed, *words)))
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))

    def _length(self, source: int, row: int) -> float:
        """About how many positions a prompt takes; 0 for what cannot be read, which loading will tell."""
        try:
            conversation = self.train[source].get(row)
        except (DataError, SeamError):
            return 0
        items = [item for message in conversation.messages for item in message.items]
        return sum(
            len(item.text or "") if item.type == "text" else self.readers[item.type].length(item)
            for item in items if item.type == "text" or item.type in self.readers
        )


def share_out(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of `shares` that sum to `count`: the largest remainders are rounded up."""
    exact = [count * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    places = sorted(range(len(shares)), key=lambda place: (counts[place] - exact[place], place))
    for place in places[: count - sum(counts)]:
        counts[place] += 1
    return counts


class _Plans(Sampler[Drawn]):
    """What the batches of one process hold, lazily; only the pools that are needed are looked at."""

    def __init__(self, data: ConversationData, epoch: int, skip: int, rank: int, world_size: int) -> None:
        self.data, self.epoch, self.skip, self.rank, self.world_size = data, epoch, skip, rank, world_size

    def __iter__(self) -> Iterator[Drawn]:
        data, pool, batches = self.data, -1, list[Drawn]()
        order = data.draw_epoch(self.epoch)
        for step in range(self.skip, data.batches_per_epoch(self.world_size)):
            number = (step * self.world_size + self.rank) % data._total
            wanted, place = divmod(number, data.config.pool_batches)
            if wanted != pool:
                pool, batches = wanted, data.draw_pool(order, self.epoch, wanted)
            yield batches[place]


class _Loading(Dataset[ConversationBatch]):
    """A batch's plan -> the batch."""

    def __init__(
        self, sources: list[ConversationSource], readers: Mapping[str, MediaReader], seed: int, epoch: int, train: bool
    ) -> None:
        self.sources, self.readers = sources, readers
        self.seed, self.epoch, self.train = seed, epoch, train

    def __getitem__(self, drawn: Drawn) -> ConversationBatch:
        """What cannot be read is named in `skipped`."""
        conversations: list[Conversation] = []
        skipped: list[tuple[str, str]] = []
        used: Counter[str] = Counter()
        for number, row in drawn:
            source = self.sources[number]
            try:
                conversation = source.get(row)
                used[conversation.id] += 1
                if used[conversation.id] > 1:  # sources that overlap, or one that is passed over several times
                    conversation = replace(conversation, id=f"{conversation.id}#{used[conversation.id]}")
                conversation = with_instructions(conversation, self.seed, self.epoch)
                if source.captions and (caption := conversation.custom.get("caption")):
                    conversation = with_caption(conversation, str(caption))
                conversations.append(conversation)
            except (DataError, SeamError) as error:
                skipped.append((source.where(row), str(error)))
        batch = load_media(conversations, self.readers, self.seed, self.epoch, self.train)
        return replace(batch, skipped=[*skipped, *batch.skipped])


def _parts(drawn: Drawn, size: int) -> list[Drawn]:
    return [drawn[start : start + size] for start in range(0, len(drawn), size)]


def _as_is(batch: Any) -> Any:
    return batch
