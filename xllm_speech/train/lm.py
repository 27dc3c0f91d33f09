"""A recipe's own small language model as a training task: ChatGLM on text in place of media (mini.md, row LM)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.files import sha256_file
from xllm_speech.datasets.lm import (
    IGNORED_LABEL,
    LmBatch,
    LmDataConfig,
    LmFrame,
    LmSamples,
    Sample,
    TextRow,
    hold_out,
    read_texts,
    sign,
    train_batches,
)
from xllm_speech.llm.chatglm_model import ChatGLMForConditionalGeneration
from xllm_speech.models.lm_config import LmModelConfig, build_lm, known_texts, load_vocabulary, make_vocabulary, save_lm
from xllm_speech.records import AnswerLosses
from xllm_speech.train.config import OptimConfig, TrainConfig

EVALUATION_SEED = 5  # the questions of an evaluation are the same in every run


@dataclass
class LmExperiment:
    """A configuration file of `xllm-speech train` for a small language model.

    eval_items: held-out prompts of each kind that are answered (greedily) at each evaluation. hint_weight: of a second loss,
    by which the last token of a question, in the prompt, is to know how the answer begins; 0: none. hint_layer: after how
    many layers; fewer than all leave the rest to take it into the answer.
    """

    task: str = "lm"
    model: LmModelConfig = field(default_factory=LmModelConfig)
    data: LmDataConfig = field(default_factory=LmDataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval_items: int = 60
    hint_weight: float = 0.0
    hint_layer: int = 1

    def __post_init__(self) -> None:
        require(self.hint_weight >= 0, f"hint_weight {self.hint_weight} must not be negative")
        require(
            1 <= self.hint_layer <= self.model.num_layers,
            f"hint_layer {self.hint_layer} must lie in 1..{self.model.num_layers} (model.num_layers)",
        )
        require_choice("task", self.task, ("lm",))
        require(self.eval_items >= 1, f"eval_items {self.eval_items} must be at least 1")


class AnswerModel(nn.Module):
    """A ChatGLM whose forward is its loss over answers; parameters have the official names, the tied head has none.

    Args:
        hint_weight, hint_layer: as in `LmExperiment`.

    Attributes:
        glm: the whole model, for generation.
    """

    def __init__(self, glm: ChatGLMForConditionalGeneration, hint_weight: float = 0.0, hint_layer: int = 1) -> None:
        super().__init__()
        self.transformer = glm.transformer
        self.hint_weight, self.hint_layer = hint_weight, hint_layer
        self._glm = (glm,)  # in a tuple, lest its parameters get a second name

    @property
    def glm(self) -> ChatGLMForConditionalGeneration:
        """The model itself, of which `transformer` is a part."""
        return self._glm[0]

    def forward(self, batch: LmBatch) -> AnswerLosses:
        """Sums over prompts, each the mean over its answer (mini.md, 5): a mean over all tokens would starve short answers.

        `tokens` and `correct` count prompts. The head is applied where an answer is wanted only.
        """
        prefix = self.glm.find_prefix(batch.ids_BL, batch.mask_BL)
        hinted = self.training and self.hint_weight > 0
        out = self.transformer(
            self.transformer.word_embeddings(batch.ids_BL), batch.mask_BL, prefix, output_hidden_states=hinted
        )
        nll_B, wrong_B = self._mean_nll(out.last_hidden_state[:, :-1], batch.labels_BL[:, 1:])
        total = nll_B.sum()
        parts = {"answer": total.detach()}
        if hinted:
            x_BLH = out.hidden_states[self.hint_layer]
            if self.hint_layer < len(self.transformer.layers):  # the last of them is normed already
                x_BLH = self.transformer.final_layernorm(x_BLH)
            hint = self._mean_nll(x_BLH, batch.hints_BL)[0].sum()
            total = total + self.hint_weight * hint
            parts["hint"] = hint.detach()
        return AnswerLosses(total, parts, len(batch.ids), int((wrong_B == 0).sum()))

    def _mean_nll(self, x_BLH: torch.Tensor, labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per row the mean loss over its labels (0 without any), and how many of them are missed. [B], [B] int64."""
        wanted_BL = labels_BL != IGNORED_LABEL
        logits_NV, labels_N = F.linear(x_BLH[wanted_BL], self.transformer.word_embeddings.weight), labels_BL[wanted_BL]
        nll_N = F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
        rows_N, rows = wanted_BL.nonzero()[:, 0], len(labels_BL)
        nll_B = nll_N.new_zeros(rows).index_add(0, rows_N, nll_N) / wanted_BL.sum(1).clamp(min=1)
        wrong_N = (logits_NV.argmax(1) != labels_N).long()
        return nll_B, wrong_N.new_zeros(rows).index_add(0, rows_N, wrong_N)


class LmTask:
    """`train.task.Task` for a small language model; its model directories are official ChatGLM folders.

    Args:
        experiment: the configuration. out: the run's directory. fabric: for the device.

    Raises:
        DataError: the texts are missing or broken. ConfigError: sizes that do not fit.
    """

    best_key = "error"
    harmless_keys = frozenset({"eval_items"})

    def __init__(self, experiment: LmExperiment, out: Path, fabric: Fabric) -> None:
        data = experiment.data
        require(bool(data.texts), "data.texts is needed: a jsonl of captions and dialogues")
        self.experiment = experiment
        self.texts_sha256 = sha256_file(data.texts)
        rows = read_texts(data.texts)
        training, held = hold_out(rows, data.held_out, data.seed)
        self.samples = _samples(training, data)
        words = [*experiment.model.words, *map(sign, data.signs)]
        self.tokenizer = load_vocabulary(make_vocabulary(known_texts([text for row in rows for text in row.texts()]), words))
        glm = build_lm(experiment.model, self.tokenizer)
        self.model = AnswerModel(glm, experiment.hint_weight, experiment.hint_layer)
        ids = glm.config.special_ids
        self.frame = LmFrame(self.tokenizer.encode_plain, ids.gmask, ids.sop, ids.eop, ids.pad)
        self.device = fabric.device
        self.questions = _evaluation(_samples(held, data), experiment.eval_items)

    def settings(self) -> dict[str, Any]:
        """All that shapes the run beside `optim` and `train`."""
        experiment = asdict(self.experiment)
        kept = {key: value for key, value in experiment.items() if key not in ("optim", "train")}
        return kept | {"texts_sha256": self.texts_sha256}

    def train_batches(self, epoch: int, skip: int, rank: int, world_size: int) -> Iterator[LmBatch]:
        """Batches of one process in one epoch."""
        return train_batches(self.samples, self.frame, self.experiment.data, epoch, skip, rank, world_size)

    def token_count(self, batch: LmBatch) -> int:
        """Prompts: the loss of each is a mean already."""
        return len(batch.ids)

    def prepare_batch(self, batch: LmBatch, step_seed: int) -> LmBatch:
        """As it is."""
        return batch

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """% of held-out prompts of each kind whose greedy answer is not exactly right, and as `error` their mean."""
        assert isinstance(model, AnswerModel)
        model.glm.eval()
        rates = {}
        for name, samples in self.questions.items():
            answers = self.answer(samples)
            wrong = sum(answer != sample.answer for answer, sample in zip(answers, samples, strict=True))
            rates[f"{name}_error"] = 100.0 * wrong / len(samples)
        return {"error": sum(rates.values()) / len(rates), **rates}

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers to prompts, as long as the longest that is wanted."""
        frame = self.frame
        longest = max(len(frame.encode(sample.answer)) for sample in samples) + 1
        prompts = [[*frame.encode(sample.prompt), frame.gmask_id, frame.sop_id] for sample in samples]
        length = max(map(len, prompts))
        lens_B1 = torch.tensor([[len(prompt)] for prompt in prompts])
        mask_BL = torch.arange(length) >= length - lens_B1
        ids_BL = torch.tensor([[frame.pad_id] * (length - len(prompt)) + prompt for prompt in prompts])
        glm: Any = self.model.glm
        made = glm.generate(
            input_ids=ids_BL.to(self.device), attention_mask=mask_BL.long().to(self.device), max_new_tokens=longest,
            do_sample=False,
        )
        answers = []
        for row in made[:, length:].tolist():
            ids = row[: row.index(frame.eop_id)] if frame.eop_id in row else row
            answers.append(str(self.tokenizer.decode(ids, skip_special_tokens=True)))
        return answers

    def save_model(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write an official-layout ChatGLM folder that `llm.load_llm` loads."""
        save_lm(folder, state, self.model.glm.config, self.tokenizer)


def _samples(rows: Sequence[TextRow], data: LmDataConfig) -> LmSamples:
    return LmSamples(rows, data.twins, data.twin_share, data.scramble_chars, data.most_questions, data.signs)


def _evaluation(held: LmSamples, count: int) -> dict[str, list[Sample]]:
    """Prompts on held-out captions: the same ones at every call. Half of those to copy are characters by chance."""
    rng = random.Random(EVALUATION_SEED)
    kinds = {"caption": ("caption",), "copy": ("copy", "scramble"), "question": ("question",), "spoken": ("spoken",),
             "multimodal": ("multimodal",)}
    return {
        name: [held.draw(tasks[number % len(tasks)], rng) for number in range(count)] for name, tasks in kinds.items()
    }
