"""What stands around questions, answers and media in a prompt (system.md, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xllm_speech.base.errors import ConfigError


class Tag(NamedTuple):
    """Text in front of and behind the vectors of a medium; ordinary text, nothing searches for it."""

    open: str
    close: str


# Kind of medium -> its tag, in the order of the paper's template. A new kind joins with `{**TAGS, "sound": Tag(...)}`.
TAGS: Mapping[str, Tag] = {
    "image": Tag("<Image>", "</Image>"),
    "video": Tag("<Video>", "</Video>"),
    "speech": Tag("<Speech>", "</Speech>"),
}


@dataclass(frozen=True)
class PromptTemplate:
    """Texts of one round: media that lead the message, `before`, the question, `after`, and then the answer.

    round: stands in front of `before` in every round once there is more than one, with `{number}`; round_end: behind the
    answer of an earlier round. first_round: number of the first.
    """

    before: str
    after: str
    round: str = "[Round {number}]\n"
    round_end: str = "\n"
    first_round: int = 0

    def __post_init__(self) -> None:
        try:
            self.header(0)
        except (LookupError, ValueError) as error:
            raise ConfigError(f"prompt template: round={self.round!r} may hold {{number}} and no other field") from error

    def header(self, index: int) -> str:
        """What stands in front of the round `index`, counted from 0."""
        return self.round.format(number=self.first_round + index)


# The release's training form and ChatGLM's history; the paper's figure; and for chat templates, which bring all of it.
CHINESE = PromptTemplate("问：", "\n答：")
ENGLISH = PromptTemplate("Question: ", "\n Answer:")
PLAIN = PromptTemplate("", "")


def find_template(name: str) -> PromptTemplate:
    """The template of a name in a configuration.

    Raises:
        ConfigError: there is none of that name.
    """
    match name:
        case "chinese":
            return CHINESE
        case "english":
            return ENGLISH
        case "plain":
            return PLAIN
    raise ConfigError(f"template `{name}` is not one of chinese, english, plain")


@dataclass(frozen=True)
class PromptStyle:
    """How conversations become prompts.

    Args:
        template: texts around questions and answers.
        tags: kind of medium -> its tag.
        rounds: `text` writes earlier rounds into the one prompt (ChatGLM, and anything else); `turns` frames every turn as
            the LLM's chat template does.
        loss: `last` trains the last answer, `all` every answer (only with `turns`: in a prefix LM, and in one prompt of
            text, earlier answers are context).
        media_order: `template` puts the media that lead a message into the order of `tags`, as the paper does; `given`
            leaves them. Media behind text always stay where they are.

    Raises:
        ConfigError: a value is none of these.
    """

    template: PromptTemplate = CHINESE
    tags: Mapping[str, Tag] = field(default_factory=lambda: dict(TAGS))
    rounds: str = "text"
    loss: str = "last"
    media_order: str = "template"

    def __post_init__(self) -> None:
        choices = (
            ("rounds", self.rounds, ("text", "turns")),
            ("loss", self.loss, ("last", "all")),
            ("media_order", self.media_order, ("template", "given")),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise ConfigError(f"prompts: {name}={value} is not one of {', '.join(allowed)}")
        if self.loss == "all" and self.rounds != "turns":
            raise ConfigError("prompts: loss=all needs rounds=turns; with rounds=text earlier answers are context")
        if "text" in self.tags:
            raise ConfigError("prompts: `text` is not a medium and takes no tag")
