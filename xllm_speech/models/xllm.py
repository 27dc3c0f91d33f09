"""The X-LLM (paper, section 3): frozen encoders' features -> interfaces -> slots of a prompt -> a frozen LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from xllm_speech.base.config import require, require_choice
from xllm_speech.interfaces.base import Interface
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.llm.lora import set_lora_mode
from xllm_speech.models.phases import PhasePlan, apply_phase, plan_phase, set_modes
from xllm_speech.models.xllm_config import LOSS_UNITS
from xllm_speech.prompts import PromptStyle, Spliced, Tag, splice_batch
from xllm_speech.records import AnswerLosses, ConversationBatch, SlotEmbeds


class XllmModel(nn.Module):
    """Interfaces around a frozen LLM. `forward` gives training losses, `answer` texts.

    Nothing trains until `start_phase`.

    Args:
        llm: the frozen LLM. interfaces: by kind, of the LLM's width. style: of prompts; tags of interfaces that it does not
            know join it. max_tokens: most positions of prompt and answer; the LLM's own limit by default.
        loss_unit: `token` weighs every answer token alike, `answer` every answer (mini.md: short answers starve otherwise).

    Raises:
        ConfigError: an interface of another width or under another kind's name, or an unknown loss unit.
    """

    def __init__(
        self,
        llm: LoadedLlm,
        interfaces: Mapping[str, Interface],
        style: PromptStyle | None = None,
        max_tokens: int | None = None,
        loss_unit: str = "token",
    ) -> None:
        super().__init__()
        require_choice("loss_unit", loss_unit, LOSS_UNITS)
        for kind, interface in interfaces.items():
            require(interface.kind == kind, f"interfaces: `{kind}` holds an interface for {interface.kind}")
            require(
                interface.llm_width == llm.width,
                f"interfaces.{kind}: made for an LLM of width {interface.llm_width}; this one has {llm.width}",
            )
        style = PromptStyle() if style is None else style
        own = {kind: Tag(interface.opening, interface.closing) for kind, interface in interfaces.items()}
        self.style = replace(style, tags={**own, **style.tags})
        self.llm = llm
        self.interfaces = nn.ModuleDict(interfaces)
        self.max_tokens = llm.max_length if max_tokens is None else min(max_tokens, llm.max_length)
        self.loss_unit = loss_unit
        self.plan: PhasePlan | None = None
        apply_phase(self._interfaces, None)

    @property
    def _interfaces(self) -> dict[str, Interface]:
        return {kind: cast(Interface, module) for kind, module in self.interfaces.items()}

    def start_phase(self, phase: int, kinds: list[str] | None = None) -> PhasePlan:
        """Let exactly the parts of phase 2 (one kind) or 3 train (`models.phases`); `ConfigError` for anything else."""
        self.plan = plan_phase(self._interfaces, phase, kinds)
        apply_phase(self._interfaces, self.plan)
        return self.plan

    def train(self, mode: bool = True) -> XllmModel:
        """Train mode for what the phase trains; everything else stays in eval mode."""
        super().train(mode)
        self.llm.train(mode)
        set_lora_mode(self.llm, mode)
        set_modes(self._interfaces, self.plan, mode)
        return self

    def make_slots(self, batch: ConversationBatch) -> list[SlotEmbeds]:
        """Vectors of every kind of medium in the batch; `ConfigError` for a kind without an interface."""
        interfaces = self._interfaces
        unknown = [kind for kind in batch.features if kind not in interfaces]
        require(not unknown, f"no interface for {', '.join(unknown)}; there are {', '.join(interfaces)}")
        return [interfaces[kind](features) for kind, features in batch.features.items()]

    def splice(self, batch: ConversationBatch, train: bool, answer_room: int = 1) -> Spliced:
        """The prompts of a batch with their media in place; conversations that cannot be used are named in it."""
        return splice_batch(
            batch.conversations, self.make_slots(batch), self.llm, self.llm.embed, self.style, train=train,
            pad_side="right" if train else "left", max_tokens=self.max_tokens, answer_room=answer_room,
            device=next(self.llm.parameters()).device,
        )

    def count_targets(self, batch: ConversationBatch) -> int:
        """What the losses of a batch are divided by: answer tokens with their ends, or answers; as the conversations say it,
        before any is left out or cut."""
        if self.loss_unit == "answer":
            return len(batch.conversations)
        total = 0
        for conversation in batch.conversations:
            answers = [message for message in conversation.messages if message.role == "assistant"]
            for message in answers if self.style.loss == "all" else answers[-1:]:
                total += 1 + sum(len(self.llm.encode(item.text or "")) for item in message.items)
        return total

    def forward(self, batch: ConversationBatch) -> AnswerLosses:
        """Cross entropy of the answers. Every trained part gets a gradient, of zeros where the batch has nothing for it, so
        that ranks whose batches lack a medium stay in step with the others.
        """
        spliced = self.splice(batch, train=True)
        targets = self.count_targets(batch)
        zero = self._touch_all()
        if spliced.llm_input is None:
            return AnswerLosses(zero, {"ce": zero.detach()}, targets, 0, spliced.rejected)
        loss = self.llm.answer_loss(spliced.llm_input)
        if self.loss_unit == "token":
            total, correct = loss.nll_B.sum(), int(loss.correct_B.sum())
        else:
            total = (loss.nll_B / loss.count_B.clamp(min=1)).sum()
            correct = int((loss.correct_B == loss.count_B).sum())
        return AnswerLosses(total + zero, {"ce": total.detach()}, targets, correct, spliced.rejected)

    def _touch_all(self) -> torch.Tensor:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            return torch.zeros(())
        return torch.stack([parameter.sum() * 0.0 for parameter in trained]).sum()

    @torch.no_grad()
    def answer(self, batch: ConversationBatch, max_new_tokens: int = 128, num_beams: int = 1) -> dict[str, str]:
        """Id -> answer of every usable conversation; an answer at the end of a conversation is left out of its prompt."""
        spliced = self.splice(batch, train=False, answer_room=max_new_tokens)
        if spliced.llm_input is None:
            return {}
        rows = self.llm.generate(spliced.llm_input, max_new_tokens=max_new_tokens, num_beams=num_beams)
        return {plan.id: self.llm.decode(ids) for plan, ids in zip(spliced.plans, rows, strict=True)}
