"""From a conversation to token ids, labels and slots: plain Python, no tensors (system.md, section 4).

Sequence: frame, media blocks and texts, frame, answer, end of answer. For ChatGLM the frame is `[gMASK]` `<sop>` behind the
prompt, for other LLMs their chat template or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xllm_speech.base.errors import ConfigError, DataError, SeamError
from xllm_speech.prompts.templates import PromptStyle
from xllm_speech.records.checks import ensure
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

IGNORED_LABEL = -100


class PromptFraming(Protocol):
    """What an LLM wants around turns. answer_end_id closes an answer in training; any of end_ids ends one in generation."""

    @property
    def answer_end_id(self) -> int: ...  # noqa: D102

    @property
    def end_ids(self) -> Sequence[int]: ...  # noqa: D102

    def frame(self, roles: Sequence[str]) -> Sequence[Sequence[int]]:
        """Ids before the first turn, between turns and behind the last, where the answer follows: len(roles) + 1 pieces.

        ChatGLM has, for one turn of the user, nothing and `[gMASK]` `<sop>`; other LLMs their chat template, or a
        begin-of-sentence token. Raises ValueError on turns that it has no form for.
        """


class PromptTokenizer(Protocol):
    """What a prompt needs of an LLM; `LoadedLlm` is one.

    pad_id fills batches; filler_id, no control token, stands at media positions.
    """

    @property
    def pad_id(self) -> int: ...  # noqa: D102

    @property
    def filler_id(self) -> int: ...  # noqa: D102

    @property
    def framing(self) -> PromptFraming: ...  # noqa: D102

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, nothing added; a control token that a user types is spelt out and controls nothing."""


@dataclass(frozen=True)
class SlotRun:
    """The positions `start` to `start + count - 1` of a prompt, which take the vectors of one media item."""

    kind: str
    start: int
    count: int


@dataclass(frozen=True)
class SpliceReport:
    """What had to go to fit `max_tokens`; false when nothing did, else `str()` says it in a sentence.

    dropped_rounds of history_rounds, the oldest, with dropped_tokens; moved_media: their media items, which are kept in
    front of the prompt. cut_answer_tokens of answer_tokens; end_lost: the answer got no end.
    """

    id: str
    max_tokens: int | None = None
    history_rounds: int = 0
    dropped_rounds: int = 0
    dropped_tokens: int = 0
    moved_media: int = 0
    answer_tokens: int = 0
    cut_answer_tokens: int = 0
    end_lost: bool = False

    def __bool__(self) -> bool:
        return self.dropped_rounds > 0 or self.end_lost

    def __str__(self) -> str:
        parts = []
        if self.dropped_rounds:
            media = f", their {self.moved_media} media items kept" if self.moved_media else ""
            parts.append(
                f"dropped the {self.dropped_rounds} oldest of {self.history_rounds} rounds of history "
                f"({self.dropped_tokens} tokens{media})"
            )
        if self.end_lost:
            kept = self.answer_tokens - self.cut_answer_tokens
            parts.append(f"kept {kept} of the {self.answer_tokens} tokens of the answer, and no end token")
        what = "; ".join(parts) if parts else "nothing dropped"
        return f"{self.id}: {what}" + (f", to fit max_tokens={self.max_tokens}" if parts else "")


@dataclass(frozen=True)
class PromptPlan:
    """One prompt: ids (the filler at slots), labels (IGNORED_LABEL where no loss is wanted; None for generation), the runs of
    slots from left to right, the number of tokens in front of the last answer, and what was left out.

    Raises `SeamError` when they disagree.
    """

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...] | None
    runs: tuple[SlotRun, ...]
    prompt_tokens: int
    report: SpliceReport

    def __post_init__(self) -> None:
        size = len(self.ids)
        ensure(0 < self.prompt_tokens <= size, f"{self.id}: a prompt of {self.prompt_tokens} tokens within {size}")
        ensure(self.labels is None or len(self.labels) == size, f"{self.id}: labels for another length than {size}")
        end = 0
        for run in self.runs:
            fits = run.count >= 1 and end <= run.start and run.start + run.count <= self.prompt_tokens
            ensure(fits, f"{self.id}: {run} overlaps another run or leaves the prompt of {self.prompt_tokens} tokens")
            end = run.start + run.count
            labels = () if self.labels is None else self.labels[run.start : end]
            ensure(all(label == IGNORED_LABEL for label in labels), f"{self.id}: a label within {run}")


@dataclass(frozen=True)
class _Media:
    kind: str
    count: int


_Piece = str | _Media


@dataclass(frozen=True)
class _Round:
    """lead: media in front of the question's first text; rest: the question; answer: None for the round to be answered."""

    lead: list[_Media]
    rest: list[_Piece]
    answer: str | None = None

    @property
    def media(self) -> list[_Media]:
        return [*self.lead, *(piece for piece in self.rest if isinstance(piece, _Media))]


@dataclass
class _Draft:
    """A prompt as far as it is laid out."""

    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    runs: list[SlotRun] = field(default_factory=list)

    def add_ids(self, ids: Sequence[int], trained: bool = False) -> None:
        self.ids += ids
        self.trained += [trained] * len(ids)

    def add(self, other: _Draft, trained: bool = False) -> None:
        self.runs += [SlotRun(run.kind, len(self.ids) + run.start, run.count) for run in other.runs]
        self.add_ids(other.ids, trained)


def list_media(conversation: Conversation) -> list[ConversationItem]:
    """The media items in the order in which their vectors must come, kind by kind: message by message, item by item."""
    return [item for message in conversation.messages for item in message.items if item.type != "text"]


def plan_prompt(
    conversation: Conversation,
    counts: Mapping[str, Sequence[int]],
    tokenizer: PromptTokenizer,
    style: PromptStyle | None = None,
    *,
    train: bool,
    max_tokens: int | None = None,
    answer_room: int = 1,
) -> PromptPlan:
    """Lay out one conversation.

    What does not fit `max_tokens` goes in this order, and the plan's report says so: the oldest rounds of history, each
    whole, but for their media, which move to the front of the prompt; then, in training, the end of the answer, which
    then gets no end token. Media, system messages and the current question are never cut.

    Args:
        counts: kind -> vectors of each media item of that kind, in the order of `list_media`.
        train: True ends in the last message, the answer, with labels on it and the end token. False ends in front of the
            answer; an assistant message at the end is then the reference, and left out.
        max_tokens: most tokens of prompt and answer. answer_room: tokens to leave for the answer in generation.

    Raises:
        SeamError: counts do not match the media items.
        DataError: an answer is missing, empty or not text, a kind of medium has no tag, a system message follows a turn,
            or what must be kept does not fit.
        ConfigError: the LLM has no form for the style's turns, or there is no room for any answer.
    """
    style = PromptStyle() if style is None else style
    if answer_room < 1:
        raise ConfigError(f"prompts: answer_room={answer_room}; leave room for at least 1 token of answer")
    system, rounds = _read(conversation, counts, style, train)
    answer: list[int] = []
    if train:
        answer = tokenizer.encode(rounds[-1].answer or "")
        if not answer:
            raise DataError(f"{conversation.id}: the answer {rounds[-1].answer!r} has no tokens; there is nothing to learn")
    wanted = len(answer) + 1 if train else answer_room  # with its end

    whole = draft = _lay_out(system, rounds, 0, tokenizer, style)
    dropped, history = 0, len(rounds) - 1
    while max_tokens is not None and len(draft.ids) + wanted > max_tokens and dropped < history:
        dropped += 1
        draft = _lay_out(system, rounds, dropped, tokenizer, style)
    prompt_tokens = len(draft.ids)
    if prompt_tokens == 0:
        raise DataError(f"{conversation.id}: the question is empty; there is nothing to answer")
    room = wanted if max_tokens is None else max_tokens - prompt_tokens
    if room < (1 if train else answer_room):
        media = sum(run.count for run in draft.runs)
        raise DataError(
            f"{conversation.id}: the prompt takes {prompt_tokens} tokens even without its history, {media} of them media "
            f"vectors, and the answer at least {1 if train else answer_room} more, but max_tokens is {max_tokens}; raise it, "
            f"or shorten the question or its media"
        )
    end_lost = train and room < wanted
    if train:
        draft.add_ids(answer[:room] if end_lost else [*answer, tokenizer.framing.answer_end_id], trained=True)
    report = SpliceReport(
        id=conversation.id,
        max_tokens=max_tokens,
        history_rounds=history,
        dropped_rounds=dropped,
        dropped_tokens=len(whole.ids) - prompt_tokens if dropped else 0,
        moved_media=sum(len(gone.media) for gone in rounds[:dropped]),
        answer_tokens=len(answer),
        cut_answer_tokens=max(0, len(answer) - room) if train else 0,
        end_lost=end_lost,
    )
    labels = tuple(
        token if trained else IGNORED_LABEL for token, trained in zip(draft.ids, draft.trained, strict=True)
    )
    return PromptPlan(
        conversation.id, tuple(draft.ids), labels if train else None, tuple(draft.runs), prompt_tokens, report
    )


def _read(
    conversation: Conversation, counts: Mapping[str, Sequence[int]], style: PromptStyle, train: bool
) -> tuple[list[list[_Piece]], list[_Round]]:
    """System messages and rounds of a conversation, its media with their counts."""
    name, taken = conversation.id, Counter[str]()

    def read_items(message: Message) -> list[_Piece]:
        pieces: list[_Piece] = []
        for item in message.items:
            if item.type == "text":
                pieces.append(item.text or "")
                continue
            if item.type not in style.tags:
                raise DataError(f"{name}: no interface for `{item.type}` items; there are some for {', '.join(style.tags)}")
            number, given = taken[item.type], counts.get(item.type, ())
            if number >= len(given):
                raise SeamError(f"{name}: {item.type} item {number} has no vectors; they were given for {len(given)} items")
            if given[number] < 1:
                raise SeamError(f"{name}: {item.type} item {number} with {given[number]} vectors; at least 1 is needed")
            taken[item.type] += 1
            pieces.append(_Media(item.type, given[number]))
        return pieces

    system: list[list[_Piece]] = []
    rounds: list[_Round] = []
    for number, message in enumerate(conversation.messages):
        if message.role == "system":
            if rounds:
                raise DataError(f"{name}: message {number} is a system message behind a turn; put it first")
            system.append(read_items(message))
        elif message.role == "user":
            rounds.append(_split_lead(read_items(message), style))
        else:
            strange = [item.type for item in message.items if item.type != "text"]
            if strange:
                raise DataError(f"{name}: message {number} answers with {', '.join(strange)}; answers are text")
            answer = "".join(item.text or "" for item in message.items)
            # The last answer of a prompt for generation is only a reference, and may well be empty.
            last = number == len(conversation.messages) - 1
            if not answer.strip() and (train or not last):
                raise DataError(f"{name}: message {number}, an answer, is empty")
            rounds[-1] = _Round(rounds[-1].lead, rounds[-1].rest, answer)
    for kind, given in counts.items():
        if len(given) > taken[kind]:
            raise SeamError(f"{name}: vectors for {len(given)} {kind} items, but the conversation holds {taken[kind]}")
    if train and rounds[-1].answer is None:
        raise DataError(f"{name}: ends in a question; training needs an answer behind it")
    return system, rounds


def _split_lead(pieces: list[_Piece], style: PromptStyle) -> _Round:
    lead: list[_Media] = []
    for piece in pieces:
        if isinstance(piece, str):
            break
        lead.append(piece)
    rest = pieces[len(lead) :]
    if style.media_order == "template":
        order = list(style.tags)
        lead.sort(key=lambda medium: order.index(medium.kind))  # stable: items of one kind keep their order
    return _Round(lead, rest)


def _lay_out(
    system: list[list[_Piece]], rounds: list[_Round], dropped: int, tokenizer: PromptTokenizer, style: PromptStyle
) -> _Draft:
    """Everything in front of the last answer, without the text of the `dropped` oldest rounds."""
    template = style.template
    moved: list[_Piece] = [medium for gone in rounds[:dropped] for medium in gone.media]
    kept = rounds[dropped:]

    def question(index: int) -> list[_Piece]:
        header = template.header(index) if len(kept) > 1 and style.rounds == "text" else ""
        lead, rest = kept[index].lead, kept[index].rest
        return [*lead, header, template.before, *rest, template.after]

    turns: list[tuple[str, list[_Piece]]] = []
    if style.rounds == "text":
        pieces: list[_Piece] = [piece for message in system for piece in (*message, "\n")] + moved
        for index, past in enumerate(kept[:-1]):
            pieces += [*question(index), past.answer or "", template.round_end]
        turns.append(("user", [*pieces, *question(len(kept) - 1)]))
        return _frame(turns, tokenizer, style)
    if system:
        turns.append(("system", [piece for message in system for piece in ("\n", *message)][1:]))
    for index, past in enumerate(kept):
        turns.append(("user", [*moved, *question(index)] if index == 0 else question(index)))
        turns.append(("assistant", [past.answer or ""]))
    return _frame(turns[:-1], tokenizer, style)


def _frame(turns: list[tuple[str, list[_Piece]]], tokenizer: PromptTokenizer, style: PromptStyle) -> _Draft:
    """Turns with what the LLM wants around them; labels on answers, all of which are earlier ones here, if so wanted."""
    framing, roles = tokenizer.framing, [role for role, _ in turns]
    try:
        frame = framing.frame(roles)
    except ValueError as error:
        raise ConfigError(f"prompts: rounds={style.rounds}: {error}; for an LLM without turns use rounds=text") from error
    ensure(len(frame) == len(roles) + 1, f"prompts: {len(frame)} pieces of frame around {len(roles)} turns")
    draft = _Draft()
    draft.add_ids(frame[0])
    for (role, pieces), behind in zip(turns, frame[1:], strict=True):
        trained = role == "assistant" and style.loss == "all"
        draft.add(_encode(pieces, tokenizer, style), trained)
        if role == "assistant":
            # What a template puts behind an answer begins with its end; without a template the end is for us to put.
            closing = list(behind[:1]) or [framing.answer_end_id]
            draft.add_ids(closing, trained and closing[0] in {framing.answer_end_id, *framing.end_ids})
            behind = behind[1:]
        draft.add_ids(behind)
    return draft


def _encode(pieces: Sequence[_Piece], tokenizer: PromptTokenizer, style: PromptStyle) -> _Draft:
    """Pieces -> ids; text between two media is encoded in one go, tags included."""
    draft, text = _Draft(), ""

    def flush() -> None:
        if text:
            draft.add_ids(tokenizer.encode(text))

    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        text += style.tags[piece.kind].open
        flush()
        draft.runs.append(SlotRun(piece.kind, len(draft.ids), piece.count))
        draft.add_ids([tokenizer.filler_id] * piece.count)
        text = style.tags[piece.kind].close
    flush()
    return draft
