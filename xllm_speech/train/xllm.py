"""Phases 2 and 3 as training tasks: one interface aligned with the frozen LLM, then the adapters of all together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import nn

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.rejects import Rejects
from xllm_speech.base.safe_load import read_tensors
from xllm_speech.datasets.conversation_config import ConversationDataConfig
from xllm_speech.datasets.conversations import ConversationData
from xllm_speech.datasets.media import build_readers
from xllm_speech.datasets.units import UnitCache, UnitKey
from xllm_speech.interfaces.config import InterfacesConfig
from xllm_speech.interfaces.pretrained import start_qformer_from_bert, start_speech_from_bert
from xllm_speech.interfaces.speech import SpeechInterface
from xllm_speech.interfaces.vision import ImageInterface, VideoInterface
from xllm_speech.llm.loading import load_llm
from xllm_speech.llm.lora import add_lora
from xllm_speech.metrics.alignment import Counts, align
from xllm_speech.models.checkpoints import WEIGHTS, find_model, load_foreign, read_asr_description
from xllm_speech.models.media import ENCODER_OF, build_encoders
from xllm_speech.models.xllm import XllmModel
from xllm_speech.models.xllm_checkpoints import (
    PREFIX,
    Parent,
    XllmDescription,
    adopt_interfaces,
    adopt_parents,
    build_xllm,
    fill_interfaces,
    hash_parts,
    save_xllm,
)
from xllm_speech.models.xllm_config import XllmConfig
from xllm_speech.records import Conversation, ConversationBatch
from xllm_speech.text.normalise import cer_tokens, normalise
from xllm_speech.train.config import OptimConfig, TrainConfig

logger = logging.getLogger(__name__)

# Answers that are texts of their own, judged by their characters; all others are right or wrong.
TEXT_TASKS = ("asr", "masr", "caption", "video")


@dataclass
class StartConfig:
    """Starting weights of phase 2; chance values where nothing is named.

    bert: folder whose transformer the Q-Former or the C-Former takes over. weights: checkpoint of others in `layout`
    (`models.foreign.LAYOUTS`), or, without a layout, the output of `xllm-speech convert`. An adapter that it lacks, or that
    it has for an LLM of another width, keeps its chance values.
    """

    bert: str = ""
    weights: str = ""
    layout: str = ""

    def __post_init__(self) -> None:
        require(not (self.bert and self.weights), "start: either bert or weights, not both")
        require(bool(self.weights) or not self.layout, "start.layout says how start.weights are laid out; name those too")


@dataclass
class XllmExperiment:
    """A configuration file of `xllm-speech train` for phases 2 (`task: align`) and 3 (`task: integrate`).

    kind: the interface that phase 2 trains. parents: kind -> trained interface: in phase 3 one for every kind; in phase 2 the
    image interface that a video interface starts from. start: weights that an interface of phase 2 starts from.
    eval_items: held-out conversations of each task that are answered at an evaluation, of at most `eval_tokens` tokens.
    """

    task: str = "align"
    kind: str = ""
    parents: dict[str, str] = field(default_factory=dict)
    start: StartConfig = field(default_factory=StartConfig)
    model: XllmConfig = field(default_factory=XllmConfig)
    data: ConversationDataConfig = field(default_factory=ConversationDataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval_items: int = 60
    eval_tokens: int = 64

    def __post_init__(self) -> None:
        require_choice("task", self.task, ("align", "integrate"))
        require(self.eval_items >= 1 and self.eval_tokens >= 1, "eval_items and eval_tokens must be at least 1")
        if self.task == "align":
            require_choice("kind", self.kind, tuple(ENCODER_OF))
            require(self.model.llm.lora.rank == 0, "model.llm.lora: phase 2 aligns with the LLM as it is; LoRA is for phase 3")
            allowed = {"image"} if self.kind == "video" else set()
            require(set(self.parents) <= allowed, f"parents: phase 2 of {self.kind} takes {', '.join(allowed) or 'none'}")
        else:
            require(not self.kind, "kind: phase 3 trains the adapters of all parents together; leave `kind` away")
            require(bool(self.parents), "parents: phase 3 needs the trained interface of every kind, as `parents.image: DIR`")
            for kind in self.parents:
                require_choice("parents", kind, tuple(ENCODER_OF))
            require(self.start == StartConfig(), "start: phase 3 starts from its parents; leave `start` away")

    @property
    def phase(self) -> int:
        """2 or 3."""
        return 2 if self.task == "align" else 3


class XllmTask:
    """`train.task.Task` for phases 2 and 3.

    Args:
        experiment: the configuration. out: where the run's files stand. fabric: for rank and device.

    Raises:
        CheckpointError: a frozen part or a parent is absent, broken, or not the one that another parent was trained with.
    """

    best_key = "error"
    harmless_keys = frozenset({"data.num_workers", "data.max_rejected", "eval_items", "eval_tokens"})

    def __init__(self, experiment: XllmExperiment, out: Path, fabric: Fabric) -> None:
        require(bool(experiment.model.llm.path), "model.llm.path is needed: the folder of the frozen LLM")
        self.experiment, self.device = experiment, fabric.device
        config = experiment.model
        trained = [experiment.kind] if experiment.phase == 2 else list(experiment.parents)
        shares = "video" in trained and config.interfaces.video.share
        config.interfaces.kinds = ["image", *trained] if shares and "image" not in trained else trained
        self.frozen = hash_parts(config)
        self.parents = adopt_parents(config, experiment.parents, self.frozen)
        if experiment.phase == 3:
            adopt_interfaces(config.interfaces, self.parents)
        llm = load_llm(config.llm.path, config.llm.dtype, str(fabric.device), config.llm.quantization)
        add_lora(llm, config.llm.lora)
        self.model: XllmModel = build_xllm(config, llm)
        self._start(shares)
        plan = self.model.start_phase(experiment.phase, trained)
        units = self._open_units() if "speech" in trained else None
        self.encoders = build_encoders(config.encoders, trained, ("asr",) if units is not None else ()).to(fabric.device)
        asr = read_asr_description(find_model(config.encoders.asr)) if "speech" in trained else None
        self.channel = experiment.data.channel if asr is None else asr.features.channel
        require(
            experiment.data.channel in ("mix", self.channel),
            f"data.channel {experiment.data.channel}: the ASR model was trained on channel {self.channel}; leave the key away",
        )
        readers = build_readers(
            trained, self.encoders.image_size, config.video_frames, self.channel, units, experiment.data.cuts,
            experiment.data.image_augment,
        )
        self.data = ConversationData(experiment.data, readers, fabric.global_rank)
        self.description = XllmDescription(
            phase=experiment.phase, kinds=trained, parts=list(plan.parts), model=config, channel=self.channel,
            frozen_sha256=self.frozen,
            parents={kind: Parent(str(read.folder), read.sha256) for kind, read in self.parents.items()},
        )
        self.rejects = Rejects(experiment.data.max_rejected)
        self.rejects_path = out / "skipped.jsonl"
        self.seen = 0

    def _start(self, shares: bool) -> None:
        """Starting weights: of the parents, of BERT, or chance."""
        experiment = self.experiment
        if experiment.phase == 3:
            for kind, read in self.parents.items():
                tensors = {name: tensor for name, tensor in read.tensors.items() if name.startswith(f"{PREFIX}{kind}.")}
                fill_interfaces(self.model, tensors, read.folder, [kind])
            return
        interface, start = self.model.interfaces[experiment.kind], experiment.start
        if start.weights:
            start_from_weights(self.model, experiment.kind, start)
            return
        match interface:
            case VideoInterface() if "image" in self.parents:
                interface.start_from_image(self._image_parent(shares))
            case SpeechInterface() if start.bert:
                start_speech_from_bert(interface, start.bert)
            case ImageInterface() if start.bert:
                start_qformer_from_bert(interface.querying, start.bert)
            case _:
                require(not start.bert, f"start.bert: not for the {experiment.kind} interface")
                require(not shares, "model.interfaces.video.share: parents.image is needed, whose Q-Former is shared")

    def _image_parent(self, shares: bool) -> ImageInterface:
        """The trained image interface; the one in the model where its Q-Former is shared."""
        read, config = self.parents["image"], self.experiment.model
        tensors = {name: tensor for name, tensor in read.tensors.items() if name.startswith(f"{PREFIX}image.")}
        if shares:
            fill_interfaces(self.model, tensors, read.folder, ["image"])
            return cast(ImageInterface, self.model.interfaces["image"])
        image_config = XllmConfig(interfaces=InterfacesConfig(kinds=["image"], image=config.interfaces.image))
        alone = build_xllm(image_config, self.model.llm)
        fill_interfaces(alone, tensors, read.folder, ["image"])
        return cast(ImageInterface, alone.interfaces["image"])

    def _open_units(self) -> UnitCache | None:
        """The unit cache, refused where it is not of this ASR model."""
        folder = self.experiment.data.units
        if not folder:
            return None
        model = find_model(self.experiment.model.encoders.asr)
        described = read_asr_description(model)
        config, channel = described.model, described.features.channel
        key = UnitKey.of(model / WEIGHTS, config.encoder, config.cif.tail_threshold, channel)
        return UnitCache.open(folder, key)

    def settings(self) -> dict[str, Any]:
        """All that shapes the run beside `optim` and `train`; the hashes of what it stands on belong to it."""
        experiment = asdict(self.experiment)
        kept = {key: value for key, value in experiment.items() if key not in ("optim", "train")}
        parents = {kind: read.sha256 for kind, read in self.parents.items()}
        return kept | {"frozen_sha256": self.frozen, "parents_sha256": parents}

    def train_batches(self, epoch: int, skip: int, rank: int, world_size: int) -> Iterator[ConversationBatch]:
        """Batches of one process; what cannot be loaded is counted, written down, and ends the run when it is too much."""
        for batch in self.data.train_batches(epoch, skip, rank, world_size):
            self.seen += len(batch.ids) + len(batch.skipped)
            if batch.skipped:
                for name, reason in batch.skipped:
                    logger.warning("left out: %s", reason if name in reason else f"{name}: {reason}")
                    self.rejects.add(name, "", reason, "loading")
                if rank == 0:
                    self.rejects.write(self.rejects_path)
                self.rejects.check(self.seen, self.rejects_path)
            yield batch

    def token_count(self, batch: ConversationBatch) -> int:
        """Answer tokens, or answers (`loss_unit`)."""
        return self.model.count_targets(batch)

    def prepare_batch(self, batch: ConversationBatch, step_seed: int) -> ConversationBatch:
        """The frozen encoders."""
        return self.encoders.encode(batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """By task, on held-out conversations: CER % of texts, % of other answers that are not exactly right; and as `error`
        their mean.
        """
        assert isinstance(model, XllmModel)
        counts: dict[str, Counts] = {}
        wrong: dict[str, list[bool]] = {}
        for name, drawn in self.data.dev_batches(self.experiment.eval_items):
            batch = self.encoders.encode(drawn.to(self.device))
            answers = model.answer(batch, max_new_tokens=self.experiment.eval_tokens)
            for conversation in batch.conversations:
                reference, answer = normalise(reference_of(conversation)), normalise(answers.get(conversation.id, ""))
                if conversation.task in TEXT_TASKS:
                    row = align(cer_tokens(reference), cer_tokens(answer)).counts
                    counts[name] = counts.get(name, Counts()) + row
                else:
                    wrong.setdefault(name, []).append(answer != reference)
        rates = {f"{name}_cer": 100.0 * (c.S + c.D + c.I) / max(1, c.N) for name, c in counts.items()}
        rates |= {f"{name}_wrong": 100.0 * sum(rows) / len(rows) for name, rows in wrong.items()}
        return {"error": sum(rates.values()) / len(rates), **rates} if rates else {}

    def save_model(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write a model directory that `XLLM.from_pretrained` loads: what trained, and hashes of the rest."""
        save_xllm(folder, state, self.description)


def start_from_weights(model: XllmModel, kind: str, start: StartConfig) -> None:
    """Fill the interface of `kind` from a checkpoint of others, or from what `xllm-speech convert` made of one.

    Raises:
        CheckpointError: it holds nothing for this interface, lacks a tensor, or one has another shape.
    """
    if start.layout:
        state, _ = load_foreign(start.weights, start.layout)
    else:
        path = Path(start.weights)
        state = read_tensors(path / WEIGHTS if path.is_dir() else path)
    prefix = f"{PREFIX}{kind}."
    tensors = {PREFIX + name: tensor.float() for name, tensor in state.items() if name.startswith(f"{kind}.")}
    if not tensors:
        raise CheckpointError(f"start.weights {start.weights}: holds no weights of the {kind} interface")
    for name, tensor in model.state_dict().items():
        stored = tensors.get(name)
        if name.startswith(f"{prefix}adapter.") and (stored is None or stored.shape != tensor.shape):
            logger.warning("%s: not in %s for an LLM of this width; it starts from chance values", name, start.weights)
            tensors[name] = tensor.clone()
    fill_interfaces(model, tensors, f"start.weights {start.weights}", [kind])


def reference_of(conversation: Conversation) -> str:
    """The answer that ends a conversation; "" where none does."""
    last = conversation.messages[-1]
    return "".join(item.text or "" for item in last.items) if last.role == "assistant" else ""
