"""Phase 1 as a training task: the CIF ASR model on speech cuts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from xllm_speech.base.config import require_choice
from xllm_speech.base.rejects import Rejects
from xllm_speech.datasets.asr_data import AsrData
from xllm_speech.datasets.config import DataConfig
from xllm_speech.metrics.alignment import Counts, align
from xllm_speech.models.asr import CifAsrModel, SearchConfig, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig
from xllm_speech.models.checkpoints import FeatureConfig, save_asr
from xllm_speech.records import AsrBatch, FbankBatch
from xllm_speech.text.normalise import cer_tokens, normalise
from xllm_speech.train.config import OptimConfig, TrainConfig

logger = logging.getLogger(__name__)


@dataclass
class AsrExperiment:
    """A configuration file of `xllm-speech train` for phase 1."""

    task: str = "asr"
    model: AsrModelConfig = field(default_factory=AsrModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    # Utterances of the dev set that are decoded (greedily) at each evaluation; decoding costs more than a training step.
    eval_utterances: int = 200

    def __post_init__(self) -> None:
        require_choice("task", self.task, ("asr",))


class AsrTask:
    """`train.task.Task` for the CIF ASR model.

    Args:
        experiment: the configuration. out: where the run's data and checkpoints stand. fabric: for rank and barrier.
    """

    best_key = "cer"
    harmless_keys = frozenset({"data.num_workers", "data.max_rejected", "eval_utterances"})

    def __init__(self, experiment: AsrExperiment, out: Path, fabric: Fabric) -> None:
        self.experiment = experiment
        self.data = AsrData(experiment.data, out, fabric.global_rank, fabric.barrier)
        self.augmenter = self.data.make_augmenter()
        self.model: CifAsrModel = build_asr_model(experiment.model, self.data.table.size, self.data.table.sos_id)
        self.model.cmvn.set_statistics(self.data.cmvn.mean_F, self.data.cmvn.std_F)
        self.device = fabric.device
        self.rejects = Rejects(experiment.data.max_rejected)
        self.rejects_path = out / "skipped.jsonl"
        self.seen = 0

    def settings(self) -> dict[str, Any]:
        """All that shapes the run beside `optim` and `train`."""
        experiment = asdict(self.experiment)
        return {key: value for key, value in experiment.items() if key not in ("optim", "train")}

    def train_batches(self, epoch: int, skip: int, rank: int, world_size: int) -> Iterator[AsrBatch]:
        """Batches of one process; broken utterances are counted, written down, and end the run when they are too many."""
        for batch in self.data.train_loader(epoch, skip, rank, world_size):
            self.seen += len(batch.ids) + len(batch.skipped)
            if batch.skipped:
                for utterance_id, reason in batch.skipped:
                    logger.warning("left out: %s", reason if utterance_id in reason else f"{utterance_id}: {reason}")
                    if utterance_id not in batch.ids:  # else it was used, without its picture
                        self.rejects.add(utterance_id, "", reason, "loading")
                if rank == 0:
                    self.rejects.write(self.rejects_path)
                self.rejects.check(self.seen, self.rejects_path)
            yield batch

    def token_count(self, batch: AsrBatch) -> int:
        """Target tokens, an eos unit included where the model has one."""
        assert batch.token_lens_B is not None, "training batches carry transcripts"
        return int(batch.token_lens_B.sum()) + (len(batch.ids) if self.experiment.model.eos_unit else 0)

    def prepare_batch(self, batch: AsrBatch, step_seed: int) -> AsrBatch:
        """SpecAugment; masked places hold the mean, zero after CMVN."""
        if self.augmenter is None or not batch.ids:
            return batch
        fbank = batch.fbank
        x_BTF = self.augmenter(fbank.x_BTF, fbank.lens_B, step_seed, self.model.cmvn.mean_F)
        return replace(batch, fbank=FbankBatch(x_BTF, fbank.lens_B))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Greedy CER % on the dev set: with everything the model may see, and (as `cer_s`) with speech alone."""
        assert isinstance(model, CifAsrModel)
        metrics = {"cer": self._decode(model, self.data.dev_loader())}
        if self.experiment.data.image_size or self.experiment.data.caption_share:
            metrics["cer_s"] = self._decode(model, self.data.dev_loader(with_images=False, with_captions=False))
        return metrics

    def _decode(self, model: CifAsrModel, batches: Iterable[AsrBatch]) -> float:
        counts, decoded = Counts(), 0
        for batch in batches:
            if not batch.ids:
                continue
            results, _ = model.recognise(batch.to(self.device), SearchConfig())
            for text, result in zip(batch.texts, results, strict=True):
                hypothesis = normalise(self.data.table.decode(result.tokens))
                counts += align(cer_tokens(text), cer_tokens(hypothesis)).counts
            decoded += len(batch.ids)
            if decoded >= self.experiment.eval_utterances:
                break
        return 100.0 * (counts.S + counts.D + counts.I) / max(1, counts.N)

    def save_model(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write a model directory that `CifAsr.from_pretrained` loads."""
        features = FeatureConfig(self.experiment.data.channel, self.experiment.data.image_size)
        save_asr(folder, state, self.experiment.model, self.data.table, features)
