"""From plans and media vectors to the LLM's input: every vector to its slot, counted per item in both directions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.prompts.plan import IGNORED_LABEL, PromptPlan, PromptTokenizer, list_media, plan_prompt
from xllm_speech.prompts.templates import PromptStyle
from xllm_speech.records.checks import ensure
from xllm_speech.records.llm import LlmInput, SlotEmbeds
from xllm_speech.records.manifest import Conversation

# int64 ids [B, L] -> embeddings [B, L, H]
Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Spliced:
    """A spliced batch.

    llm_input: rows in the order of `plans`; None when no conversation could be used. rejected: (id, reason) of those that
    are in no row.
    """

    llm_input: LlmInput | None
    plans: list[PromptPlan]
    rejected: list[tuple[str, str]]


def splice_batch(
    conversations: Sequence[Conversation],
    slot_embeds: Sequence[SlotEmbeds],
    tokenizer: PromptTokenizer,
    embed: Embed,
    style: PromptStyle | None = None,
    *,
    train: bool,
    pad_side: str,
    max_tokens: int | None = None,
    answer_room: int = 1,
    device: torch.device | str | None = None,
) -> Spliced:
    """Plan and assemble a batch; a conversation that cannot be used costs only itself.

    Args:
        slot_embeds: at most one per kind, its items in the order of the conversations and, within one, of `list_media`.
        style, train, max_tokens, answer_room: as in `plan_prompt`. embed, pad_side, device: as in `assemble`.

    Raises:
        SeamError: media items and vectors do not match, over the batch or for one item.
        ConfigError: what `plan_prompt` or `assemble` raise.
    """
    by_kind = _by_kind(slot_embeds)
    lens = {kind: media.lens_N.tolist() for kind, media in by_kind.items()}
    used: dict[str, list[int]] = {kind: [] for kind in by_kind}
    seen = Counter[str]()
    plans: list[PromptPlan] = []
    rejected: list[tuple[str, str]] = []
    for conversation in conversations:
        items = Counter(item.type for item in list_media(conversation))
        places = {kind: range(seen[kind], min(seen[kind] + number, len(lens.get(kind, ())))) for kind, number in items.items()}
        seen.update(items)
        counts = {kind: [lens[kind][place] for place in span] for kind, span in places.items()}
        try:
            plan = plan_prompt(
                conversation, counts, tokenizer, style, train=train, max_tokens=max_tokens, answer_room=answer_room
            )
        except DataError as error:
            rejected.append((conversation.id, str(error)))
            continue
        plans.append(plan)
        for kind, span in places.items():
            used[kind] += span
    for kind, values in lens.items():
        ensure(seen[kind] == len(values), f"splice: vectors of {len(values)} {kind} items for {seen[kind]} in the batch")
    if not plans:
        return Spliced(None, plans, rejected)
    kept = [_select(media, used[kind]) for kind, media in by_kind.items() if used[kind]]
    llm_input = assemble(plans, kept, embed, pad_id=tokenizer.pad_id, pad_side=pad_side, device=device)
    return Spliced(llm_input, plans, rejected)


def assemble(
    plans: Sequence[PromptPlan],
    slot_embeds: Sequence[SlotEmbeds],
    embed: Embed,
    *,
    pad_id: int,
    pad_side: str,
    device: torch.device | str | None = None,
) -> LlmInput:
    """Put vectors into their slots; gradients reach exactly the vectors that are in use.

    Args:
        slot_embeds: at most one per kind, its items in the order in which the plans' runs name them.
        embed: ids int64 [B, L] -> embeddings [B, L, H], such as the LLM's input embeddings; gives the dtype.
        pad_side: `right`, or `left` for generation. device: of the ids; None takes that of the vectors, else the CPU.

    Raises:
        SeamError: a run and its item differ in their number of vectors, items or runs are left over, a width is not H,
            some plans have labels and others not, or there is no plan.
        ConfigError: `pad_side` is something else.
    """
    if pad_side not in ("left", "right"):
        raise ConfigError(f"prompts: pad_side={pad_side} is not one of left, right")
    ensure(len(plans) > 0, "splice: no prompts to assemble")
    trained = [plan for plan in plans if plan.labels is not None]
    ensure(len(trained) in (0, len(plans)), f"splice: {len(trained)} of {len(plans)} prompts have labels")
    by_kind = _by_kind(slot_embeds)
    _ensure_counts(plans, by_kind)
    if device is None:
        device = slot_embeds[0].x_NQH.device if slot_embeds else "cpu"

    batch, longest = len(plans), max(len(plan.ids) for plan in plans)
    offsets = [longest - len(plan.ids) if pad_side == "left" else 0 for plan in plans]
    ids_BL = torch.full((batch, longest), pad_id, dtype=torch.int64)
    labels_BL = torch.full((batch, longest), IGNORED_LABEL, dtype=torch.int64)
    mask_BL = torch.zeros(batch, longest, dtype=torch.bool)
    slots_BL = torch.zeros(batch, longest, dtype=torch.bool)
    for row, (plan, offset) in enumerate(zip(plans, offsets, strict=True)):
        span = slice(offset, offset + len(plan.ids))
        ids_BL[row, span] = torch.tensor(plan.ids)
        mask_BL[row, span] = True
        if plan.labels is not None:
            labels_BL[row, span] = torch.tensor(plan.labels)
        for run in plan.runs:
            slots_BL[row, offset + run.start : offset + run.start + run.count] = True
    ids_BL = ids_BL.to(device)
    embeds_BLH = embed(ids_BL)
    found = tuple(embeds_BLH.shape)
    ensure(len(found) == 3 and found[:2] == (batch, longest), f"splice: embed gave {found} for ids {(batch, longest)}")
    for kind, media in by_kind.items():
        width = media.x_NQH.shape[2]
        ensure(width == found[2], f"splice: {kind} vectors of width {width} for an LLM of width {found[2]}")
        if media.lens_N.numel() == 0:
            continue
        places = [
            (row, offset + run.start + position)
            for row, (plan, offset) in enumerate(zip(plans, offsets, strict=True))
            for run in plan.runs if run.kind == kind
            for position in range(run.count)
        ]
        rows, columns = torch.tensor(places, device=embeds_BLH.device).unbind(1)
        queries = torch.arange(media.x_NQH.shape[1], device=media.lens_N.device)
        valid_NQ = (queries < media.lens_N[:, None]).to(media.x_NQH.device)
        embeds_BLH = embeds_BLH.index_put((rows, columns), media.x_NQH[valid_NQ].to(embeds_BLH))
    return LlmInput(
        ids_BL=ids_BL,
        embeds_BLH=embeds_BLH,
        mask_BL=mask_BL.to(device),
        slots_BL=slots_BL.to(device),
        labels_BL=labels_BL.to(device) if trained else None,
    )


def _by_kind(slot_embeds: Sequence[SlotEmbeds]) -> dict[str, SlotEmbeds]:
    by_kind = {media.kind: media for media in slot_embeds}
    ensure(len(by_kind) == len(slot_embeds), f"splice: a kind twice among {[media.kind for media in slot_embeds]}")
    return by_kind


def _select(media: SlotEmbeds, places: list[int]) -> SlotEmbeds:
    if len(places) == media.lens_N.numel():
        return media
    index = torch.tensor(places, device=media.x_NQH.device)
    return SlotEmbeds(media.x_NQH[index], media.lens_N[index.to(media.lens_N.device)], media.kind)


def _ensure_counts(plans: Sequence[PromptPlan], by_kind: dict[str, SlotEmbeds]) -> None:
    """Per item: slots == vectors; and neither runs nor items are left over."""
    taken = Counter[str]()
    lens = {kind: media.lens_N.tolist() for kind, media in by_kind.items()}
    for plan in plans:
        for run in plan.runs:
            number, given = taken[run.kind], lens.get(run.kind, [])
            ensure(
                number < len(given),
                f"splice: {plan.id} has slots for {run.kind} item {number} of the batch, but vectors came for {len(given)}",
            )
            ensure(
                given[number] == run.count,
                f"splice: {plan.id} has {run.count} slots for {run.kind} item {number} of the batch, which has "
                f"{given[number]} vectors",
            )
            taken[run.kind] += 1
    for kind, given in lens.items():
        used = taken[kind]
        ensure(used == len(given), f"splice: vectors of {len(given)} {kind} items, but the prompts hold {used}")
