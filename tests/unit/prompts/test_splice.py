from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_tools import (
    CHAT,
    CLOSE,
    EOP,
    FILLER,
    GLM,
    GMASK,
    NEWLINE,
    OPEN,
    PAD,
    ROLE,
    SOP,
    WIDTH,
    CharTokenizer,
    embedding,
    item,
    talk,
    vectors,
)

from xllm_speech.base.errors import ConfigError, SeamError
from xllm_speech.prompts import PLAIN, TAGS, PromptStyle, assemble, list_media, plan_prompt, splice_batch
from xllm_speech.prompts.plan import IGNORED_LABEL
from xllm_speech.records import Conversation, LlmInput, Message, SlotEmbeds

EMBED = embedding()
KINDS = ("image", "video", "speech")
Token = tuple[int, torch.Tensor, int, bool]  # id, embedding, label, is it a slot


class Reference:
    """Lays out one conversation token by token; knows only the form of the tests' two frames."""

    def __init__(self, turns: bool, all_answers: bool) -> None:
        self.turns, self.all_answers = turns, all_answers
        self.tokens: list[Token] = []

    def put(self, token: int, loss: bool = False) -> None:
        self.tokens.append((token, EMBED.weight[token], token if loss else IGNORED_LABEL, False))

    def text(self, text: str, loss: bool = False) -> None:
        for letter in text:
            self.put(GLM.encode(letter)[0], loss)

    def medium(self, kind: str, rows: torch.Tensor) -> None:
        self.text(f"<{kind.capitalize()}>")
        for row in rows:
            self.tokens.append((FILLER, row, IGNORED_LABEL, True))
        self.text(f"</{kind.capitalize()}>")

    def run(self, conversation: Conversation, media: dict[int, tuple[str, torch.Tensor]], dropped: int, train: bool) -> None:
        """media: identity of an item -> its kind and vectors."""
        messages = [message for message in conversation.messages if message.role != "system"]
        system = "".join(part.text or "" for message in conversation.messages if message.role == "system"
                         for part in message.items)
        pairs = [(messages[place], messages[place + 1] if place + 1 < len(messages) else None)
                 for place in range(0, len(messages), 2)]
        kept = pairs[dropped:]
        if self.turns:
            self.put(OPEN)
        if system and self.turns:
            self.put(ROLE["system"])
            self.text(system)
            for token in (CLOSE, NEWLINE, OPEN):
                self.put(token)
        elif system:
            self.text(system + "\n")
        if self.turns:
            self.put(ROLE["user"])
        for question, _ in pairs[:dropped]:
            lead, rest = self.split(question)
            for part in [*lead, *rest]:
                if part.type != "text":
                    self.medium(*media[id(part)])
        for number, (question, answer) in enumerate(kept):
            lead, rest = self.split(question)
            for part in lead:
                self.medium(*media[id(part)])
            if not self.turns:
                self.text((f"[Round {number}]\n" if len(kept) > 1 else "") + "问：")
            for part in rest:
                if part.type == "text":
                    self.text(part.text or "")
                else:
                    self.medium(*media[id(part)])
            said = "" if answer is None else "".join(part.text or "" for part in answer.items)
            last = number == len(kept) - 1
            if self.turns:
                for token in (CLOSE, NEWLINE, OPEN, ROLE["assistant"]):
                    self.put(token)
            else:
                self.text("\n答：")
            if last:
                if not self.turns:
                    self.put(GMASK)
                    self.put(SOP)
                if train:
                    self.text(said, loss=True)
                    self.put(CLOSE if self.turns else EOP, loss=True)
            elif self.turns:
                self.text(said, loss=self.all_answers)
                self.put(CLOSE, loss=self.all_answers)
                for token in (NEWLINE, OPEN, ROLE["user"]):
                    self.put(token)
            else:
                self.text(said + "\n")

    def split(self, message: Message) -> tuple[list, list]:
        lead = []
        for part in message.items:
            if part.type == "text":
                break
            lead.append(part)
        rest = list(message.items)[len(lead):]
        return [part for kind in KINDS for part in lead if part.type == kind], rest


media_spec = st.sampled_from([f"{kind}:" for kind in KINDS])
question_spec = st.lists(st.one_of(media_spec, st.sampled_from(["what", "is it", "<Image>", ""])), min_size=1, max_size=5)
answer_spec = st.sampled_from(["yes", "no", "a cat", "问：x"])


@st.composite
def conversations(draw: st.DrawFn) -> list[Conversation]:
    made = []
    for number in range(draw(st.integers(1, 3))):
        turns: list = []
        for _ in range(draw(st.integers(1, 4))):
            turns += [draw(question_spec), draw(answer_spec)]
        made.append(talk(*turns, system=draw(st.sampled_from([None, "be kind"])), id=f"talk-{number}"))
    return made


def draw_vectors(batch: list[Conversation], number: Callable[[], int]) -> tuple[list[SlotEmbeds], dict]:
    """SlotEmbeds of a batch, and the vectors of each item by its identity."""
    by_kind = {kind: [part for one in batch for part in list_media(one) if part.type == kind] for kind in KINDS}
    slots = [vectors(kind, [number() for _ in parts], seed) for seed, (kind, parts) in enumerate(by_kind.items()) if parts]
    media = {
        id(part): (embeds.kind, embeds.x_NQH[place, : int(embeds.lens_N[place])])
        for embeds in slots for place, part in enumerate(by_kind[embeds.kind])
    }
    return slots, media


def rows_of(prompt: LlmInput) -> list[list[tuple]]:
    """Real positions of every row."""
    found = []
    for row in range(prompt.ids_BL.shape[0]):
        real = prompt.mask_BL[row]
        labels = [None] * int(real.sum()) if prompt.labels_BL is None else prompt.labels_BL[row][real].tolist()
        found.append(list(zip(
            prompt.ids_BL[row][real].tolist(), prompt.embeds_BLH[row][real], labels, prompt.slots_BL[row][real].tolist(),
            strict=True,
        )))
    return found


@settings(max_examples=120, deadline=None)
@given(batch=conversations(), data=st.data())
def test_every_position_is_that_of_the_reference(batch: list[Conversation], data: st.DataObject) -> None:
    slots, media = draw_vectors(batch, lambda: data.draw(st.integers(1, 4)))
    turns, train = data.draw(st.booleans()), data.draw(st.booleans())
    all_answers = turns and data.draw(st.booleans())
    limit = data.draw(st.one_of(st.none(), st.integers(60, 250)))
    pad_side = data.draw(st.sampled_from(["left", "right"]))
    style = PromptStyle(template=PLAIN, rounds="turns", loss="all" if all_answers else "last") if turns else PromptStyle()
    tokenizer: CharTokenizer = CHAT if turns else GLM
    spliced = splice_batch(
        batch, slots, tokenizer, EMBED, style, train=train, pad_side=pad_side, max_tokens=limit, answer_room=5
    )

    expected, ids = [], []
    for one in batch:
        history = len([message for message in one.messages if message.role == "user"]) - 1
        for dropped in range(history + 1):
            reference = Reference(turns, all_answers)
            reference.run(one, media, dropped, train)
            room = None if limit is None else limit - len(reference.tokens) - (0 if train else 5)
            if room is None or room >= 0:
                break
        if room is not None and room < 0:
            answer = len("".join(part.text or "" for part in one.messages[-1].items)) + 1
            if not train or -room >= answer:
                assert (one.id, True) in [(name, "max_tokens" in reason) for name, reason in spliced.rejected]
                continue
            reference.tokens = reference.tokens[:room]
        expected.append(reference.tokens)
        ids.append(one.id)
    assert [plan.id for plan in spliced.plans] == ids
    if spliced.llm_input is None:
        assert not expected
        return
    prompt = spliced.llm_input
    assert (prompt.labels_BL is not None) == train
    found = rows_of(prompt)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        for (token, vector, label, is_slot), (want, want_vector, want_label, want_slot) in zip(ours, theirs, strict=True):
            assert (token, is_slot) == (want, want_slot)
            assert label == (want_label if train else None)
            assert torch.equal(vector, want_vector)
    assert torch.equal(prompt.ids_BL[~prompt.mask_BL], torch.full_like(prompt.ids_BL[~prompt.mask_BL], PAD))
    edge = -1 if pad_side == "left" else 0
    assert bool(prompt.mask_BL[:, edge].all())
    assert bool(prompt.embeds_BLH.isfinite().all())


BATCH = [
    talk(["image:a", "speech:s", "what?"], "a cat", id="front"),
    talk("no media", "none", id="bare"),
    talk(["where is ", "image:b", "image:c"], "there", ["speech:t"], "red", id="rounds"),
]


def media_of_batch() -> list[SlotEmbeds]:
    return [vectors("speech", [2, 5], 1), vectors("image", [3, 1, 2], 2)]


def test_left_and_right_padding_hold_the_same_rows() -> None:
    left, right = (
        splice_batch(BATCH, media_of_batch(), GLM, EMBED, train=True, pad_side=side).llm_input for side in ("left", "right")
    )
    assert left is not None
    assert right is not None
    assert not torch.equal(left.mask_BL, right.mask_BL)
    for ours, theirs in zip(rows_of(left), rows_of(right), strict=True):
        assert [(a, c, d) for a, _, c, d in ours] == [(a, c, d) for a, _, c, d in theirs]
        assert all(torch.equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))


def test_a_batch_is_its_items_alone() -> None:
    slots = media_of_batch()
    whole = splice_batch(BATCH, slots, GLM, EMBED, train=True, pad_side="right").llm_input
    assert whole is not None
    parts = ({"speech": [0], "image": [0]}, {}, {"speech": [1], "image": [1, 2]})
    for row, (one, places) in enumerate(zip(BATCH, parts, strict=True)):
        own = [SlotEmbeds(e.x_NQH[places[e.kind]], e.lens_N[places[e.kind]], e.kind) for e in slots if e.kind in places]
        alone = splice_batch([one], own, GLM, EMBED, train=True, pad_side="right").llm_input
        assert alone is not None
        size = alone.ids_BL.shape[1]
        assert bool(alone.mask_BL.all())
        assert torch.equal(alone.embeds_BLH[0], whole.embeds_BLH[row, :size])
        assert torch.equal(alone.ids_BL[0], whole.ids_BL[row, :size])
        assert int(whole.mask_BL[row].sum()) == size


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradient_reaches_every_vector_in_use_and_nothing_else(side: str) -> None:
    slots = media_of_batch()
    leaves = [embeds.x_NQH.requires_grad_() for embeds in slots]
    prompt = splice_batch(BATCH, slots, GLM, EMBED, train=True, pad_side=side).llm_input
    assert prompt is not None
    weights = torch.randn(prompt.embeds_BLH.shape)
    (prompt.embeds_BLH * weights).sum().backward()
    for embeds, leaf in zip(slots, leaves, strict=True):
        assert leaf.grad is not None
        used = torch.arange(leaf.shape[1]) < embeds.lens_N[:, None]
        assert torch.equal(leaf.grad[~used], torch.zeros_like(leaf.grad[~used]))
        assert bool((leaf.grad[used] != 0).all())
    total = sum(float(leaf.grad.sum()) for leaf in leaves if leaf.grad is not None)
    assert total == pytest.approx(float(weights[prompt.slots_BL].sum()), abs=1e-3)
    assert EMBED.weight.grad is None


def test_dtype_is_that_of_the_llm() -> None:
    table = embedding().to(torch.bfloat16)
    prompt = splice_batch(BATCH, media_of_batch(), GLM, table, train=False, pad_side="left").llm_input
    assert prompt is not None
    assert prompt.embeds_BLH.dtype == torch.bfloat16
    assert prompt.labels_BL is None


def test_a_conversation_that_does_not_fit_costs_only_itself() -> None:
    batch = [
        talk(["image:a", "what?"], "a cat", id="first"),
        talk(["image:b", "x" * 100], "long", id="long"),
        talk(["speech:s", "image:c"], "red", id="last"),
    ]
    slots = [vectors("image", [2, 3, 4], 1), vectors("speech", [2], 2)]
    spliced = splice_batch(batch, slots, GLM, EMBED, train=True, pad_side="right", max_tokens=90)
    assert [name for name, _ in spliced.rejected] == ["long"]
    assert "3 of them media vectors" in spliced.rejected[0][1]
    assert [plan.id for plan in spliced.plans] == ["first", "last"]
    assert spliced.llm_input is not None
    last = spliced.llm_input.embeds_BLH[1][spliced.llm_input.slots_BL[1]]
    assert torch.equal(last, torch.cat([slots[0].x_NQH[2, :4], slots[1].x_NQH[0, :2]]))

    nothing = splice_batch(batch, slots, GLM, EMBED, train=True, pad_side="right", max_tokens=5)
    assert nothing.llm_input is None
    assert len(nothing.rejected) == 3


def test_an_empty_record_of_a_kind_is_no_surplus() -> None:
    none = SlotEmbeds(torch.zeros(0, 4, WIDTH), torch.zeros(0, dtype=torch.int64), "image")
    spliced = splice_batch([talk("what?", "x")], [none], GLM, EMBED, train=True, pad_side="right")
    assert spliced.llm_input is not None
    assert not bool(spliced.llm_input.slots_BL.any())


def test_an_answer_of_media_or_a_kind_without_a_tag_costs_only_itself() -> None:
    batch = [talk(["image:a"], ["image:b"], id="strange"), talk(["image:c"], "x", id="good")]
    spliced = splice_batch(batch, [vectors("image", [1, 2, 3])], GLM, EMBED, train=True, pad_side="right")
    assert [name for name, _ in spliced.rejected] == ["strange"]
    assert spliced.llm_input is not None
    assert int(spliced.llm_input.slots_BL.sum()) == 3

    style = PromptStyle(tags={kind: TAGS[kind] for kind in ("image", "speech")})
    batch = [talk(["video:a"], "x", id="clip"), talk(["image:c"], "x", id="good")]
    spliced = splice_batch(batch, [vectors("image", [2])], GLM, EMBED, style, train=True, pad_side="right")
    assert [name for name, _ in spliced.rejected] == ["clip"]
    assert "no interface for `video` items" in spliced.rejected[0][1]


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ([vectors("image", [2])], "talk-2: image item 0 has no vectors; they were given for 0 items"),
        ([vectors("image", [2, 2, 2])], "vectors of 3 image items for 2 in the batch"),
        ([vectors("image", [2, 2]), vectors("speech", [1])], "vectors of 1 speech items for 0 in the batch"),
        ([vectors("speech", [2, 2])], "talk-1: image item 0 has no vectors"),
        ([], "talk-1: image item 0 has no vectors"),
        ([vectors("image", [2]), vectors("image", [2])], "a kind twice"),
        ([vectors("image", [2, 2], width=WIDTH + 1)], f"image vectors of width {WIDTH + 1} for an LLM of width {WIDTH}"),
    ],
)
def test_vectors_that_do_not_match_the_batch_are_refused(slots: list[SlotEmbeds], text: str) -> None:
    batch = [talk(["image:a"], "x", id="talk-1"), talk(["image:b"], "y", id="talk-2")]
    with pytest.raises(SeamError, match=text):
        splice_batch(batch, slots, GLM, EMBED, train=True, pad_side="right")


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ([vectors("image", [2, 1, 3])], "talk-1 has 2 slots for image item 1 of the batch, which has 1 vectors"),
        ([vectors("image", [2, 3, 3])], "talk-1 has 2 slots for image item 1 of the batch, which has 3 vectors"),
        ([vectors("image", [2, 3, 2])], "talk-1 has 2 slots for image item 1"),  # the sum is right, the order is not
        ([vectors("image", [2, 2])], "talk-2 has slots for image item 2 of the batch, but vectors came for 2"),
        ([vectors("image", [2, 2, 3, 1])], "vectors of 4 image items, but the prompts hold 3"),
        ([vectors("speech", [2, 2, 3])], "talk-1 has slots for image item 0 of the batch, but vectors came for 0"),
        ([vectors("image", [2, 2, 3]), vectors("video", [1])], "vectors of 1 video items, but the prompts hold 0"),
    ],
)
def test_slots_and_vectors_are_counted_per_item_in_both_directions(slots: list[SlotEmbeds], text: str) -> None:
    plans = [
        plan_prompt(talk(["image:a", "image:b"], "x", id="talk-1"), {"image": [2, 2]}, GLM, train=True),
        plan_prompt(talk(["image:c"], "y", id="talk-2"), {"image": [3]}, GLM, train=True),
    ]
    with pytest.raises(SeamError, match=text):
        assemble(plans, slots, EMBED, pad_id=PAD, pad_side="right")


def test_prompts_for_training_and_generation_do_not_mix() -> None:
    plans = [plan_prompt(talk("a?", "x"), {}, GLM, train=train) for train in (True, False)]
    with pytest.raises(SeamError, match="1 of 2 prompts have labels"):
        assemble(plans, [], EMBED, pad_id=PAD, pad_side="right")
    with pytest.raises(SeamError, match="no prompts"):
        assemble([], [], EMBED, pad_id=PAD, pad_side="right")
    with pytest.raises(ConfigError, match="pad_side=middle is not one of left, right"):
        assemble(plans[:1], [], EMBED, pad_id=PAD, pad_side="middle")


def test_an_embedding_of_another_shape_is_refused() -> None:
    plan = plan_prompt(talk("a?", "x"), {}, GLM, train=True)
    with pytest.raises(SeamError, match="splice: embed gave"):
        assemble([plan], [], lambda ids: EMBED(ids)[:, :-1], pad_id=PAD, pad_side="right")


def test_system_media_come_first() -> None:
    conversation = Conversation("talk-1", "vl", (Message("system", (item("image:map"),)), *talk(["image:a", "what?"]).messages))
    slots = vectors("image", [1, 2])
    prompt = splice_batch([conversation], [slots], GLM, EMBED, train=False, pad_side="left").llm_input
    assert prompt is not None
    assert torch.equal(prompt.embeds_BLH[0][prompt.slots_BL[0]], torch.cat([slots.x_NQH[0, :1], slots.x_NQH[1, :2]]))


def test_user_errors_of_the_style_are_not_swallowed() -> None:
    style = PromptStyle(template=PLAIN, rounds="turns")
    with pytest.raises(ConfigError, match="use rounds=text"):
        splice_batch([talk("a", "b", "c", "d")], [], GLM, EMBED, style, train=True, pad_side="right")
