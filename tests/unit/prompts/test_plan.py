from __future__ import annotations

import pytest
from prompt_tools import (
    BARE,
    BASE,
    CHAT,
    CLOSE,
    EOP,
    FILLER,
    GLM,
    GMASK,
    NEWLINE,
    OPEN,
    ROLE,
    SOP,
    VOCABULARY,
    CharTokenizer,
    item,
    talk,
)

from xllm_speech.base.errors import ConfigError, DataError, SeamError
from xllm_speech.prompts import ENGLISH, PLAIN, TAGS, PromptPlan, PromptStyle, SlotRun, SpliceReport, Tag
from xllm_speech.prompts.plan import IGNORED_LABEL, list_media, plan_prompt
from xllm_speech.records import Conversation, Message

TURNS = PromptStyle(template=PLAIN, rounds="turns")
ALL = PromptStyle(template=PLAIN, rounds="turns", loss="all")
CONTROL = {GMASK: "[G]", SOP: "[S]", EOP: "[E]", OPEN: "{", CLOSE: "}", NEWLINE: "/", FILLER: "*"} | {
    index: role[0].upper() + ":" for role, index in ROLE.items()
}
ALPHABET = sorted(
    set("<Image></Image><Video><Speech><Sound>Question: \n Answer:问：答[Round 0123]abcdefghijklmnopqrstuvwxyz?.")
)


def spell(ids: tuple[int, ...]) -> str:
    letters = {GLM.encode(letter)[0]: letter for letter in ALPHABET}
    assert len(letters) == len(ALPHABET)
    return "".join(CONTROL.get(index, letters.get(index, "\ufffd")) for index in ids)


def loss_on(plan: PromptPlan) -> list[str]:
    """The stretches of the prompt with labels, each of which must be its own ids."""
    assert plan.labels is not None
    stretches, open_now = [], False
    for token, label in zip(plan.ids, plan.labels, strict=True):
        assert label in (IGNORED_LABEL, token)
        if label != IGNORED_LABEL:
            stretches = [*stretches[:-1], [*stretches[-1], token]] if open_now else [*stretches, [token]]
        open_now = label != IGNORED_LABEL
    return [spell(tuple(stretch)) for stretch in stretches]


def test_the_papers_template_with_all_media() -> None:
    plan = plan_prompt(
        talk(["speech:s", "video:v", "image:i", "what?"], "a cat"), {"image": [2], "video": [3], "speech": [1]}, GLM,
        PromptStyle(template=ENGLISH), train=True,
    )
    before = "<Image>**</Image><Video>***</Video><Speech>*</Speech>Question: what?\n Answer:[G][S]"
    assert spell(plan.ids) == before + "a cat[E]"
    assert loss_on(plan) == ["a cat[E]"]
    assert spell(plan.ids[: plan.prompt_tokens]).endswith("Answer:[G][S]")
    assert [(run.kind, run.count) for run in plan.runs] == [("image", 2), ("video", 3), ("speech", 1)]
    assert all(plan.ids[run.start + place] == FILLER for run in plan.runs for place in range(run.count))
    assert not plan.report


def test_media_order_as_given() -> None:
    style = PromptStyle(media_order="given")
    counts = {"image": [1, 2], "speech": [3]}
    plan = plan_prompt(talk(["image:a", "speech:s", "image:b", "what?"]), counts, GLM, style, train=False)
    assert spell(plan.ids) == "<Image>*</Image><Speech>***</Speech><Image>**</Image>问：what?\n答：[G][S]"
    sorted_plan = plan_prompt(talk(["image:a", "speech:s", "image:b", "what?"]), counts, GLM, train=False)
    assert spell(sorted_plan.ids) == "<Image>*</Image><Image>**</Image><Speech>***</Speech>问：what?\n答：[G][S]"


def test_media_within_and_behind_the_question_stay_there() -> None:
    conversation = talk(["is ", "image:a", " like ", "speech:s", "image:b"])
    plan = plan_prompt(conversation, {"image": [1, 2], "speech": [3]}, GLM, train=False)
    assert spell(plan.ids) == (
        "问：is <Image>*</Image> like <Speech>***</Speech><Image>**</Image>\n答：[G][S]"
    )
    assert plan.labels is None
    assert [medium.path for medium in list_media(conversation)] == ["image:a", "speech:s", "image:b"]


def test_media_alone_and_text_alone() -> None:
    assert spell(plan_prompt(talk(["speech:s"]), {"speech": [2]}, GLM, train=False).ids) == (
        "<Speech>**</Speech>问：\n答：[G][S]"
    )
    assert spell(plan_prompt(talk("what?"), {}, BARE, train=False).ids) == "{问：what?\n答："


def test_history_in_one_prompt() -> None:
    conversation = talk(["image:a", "what?"], "a cat", ["speech:s"], "red", "where?", "there", system="be kind")
    plan = plan_prompt(conversation, {"image": [2], "speech": [1]}, GLM, train=True)
    assert spell(plan.ids) == (
        "be kind\n<Image>**</Image>[Round 0]\n问：what?\n答：a cat\n<Speech>*</Speech>[Round 1]\n问：\n答：red\n"
        "[Round 2]\n问：where?\n答：[G][S]there[E]"
    )
    assert loss_on(plan) == ["there[E]"]
    assert plan.report.history_rounds == 2


def test_generation_leaves_the_reference_out() -> None:
    with_reference = plan_prompt(talk("what?", "a cat", "where?", "there"), {}, GLM, train=False)
    without = plan_prompt(talk("what?", "a cat", "where?"), {}, GLM, train=False)
    assert with_reference.ids == without.ids
    assert with_reference.labels is None
    assert plan_prompt(talk("what?", ""), {}, GLM, train=False).ids == plan_prompt(talk("what?"), {}, GLM, train=False).ids


def test_turns_of_a_chat_template() -> None:
    conversation = talk(["image:a", "what?"], "a cat", "where?", "there", system="be kind")
    plan = plan_prompt(conversation, {"image": [2]}, CHAT, TURNS, train=True)
    assert spell(plan.ids) == (
        "{S:be kind}/{U:<Image>**</Image>what?}/{A:a cat}/{U:where?}/{A:there}"
    )
    assert loss_on(plan) == ["there}"]
    assert loss_on(plan_prompt(conversation, {"image": [2]}, CHAT, ALL, train=True)) == ["a cat}", "there}"]


def test_turns_without_a_chat_template_get_our_end() -> None:
    plan = plan_prompt(talk("what?", "a cat", "where?", "there"), {}, BARE, ALL, train=True)
    assert spell(plan.ids) == "{what?a cat[E]where?there[E]"
    assert loss_on(plan) == ["a cat[E]", "there[E]"]


def test_a_template_that_puts_no_end_behind_answers_trains_none() -> None:
    class NoEnd:
        answer_end_id, end_ids = EOP, (EOP,)

        def frame(self, roles: list[str]) -> list[tuple[int, ...]]:
            return [(OPEN,), *[(NEWLINE,)] * len(roles)]

    plan = plan_prompt(talk("what?", "a cat", "where?", "there"), {}, CharTokenizer(NoEnd()), ALL, train=True)  # type: ignore[arg-type]
    assert spell(plan.ids) == "{what?/a cat/where?/there[E]"
    assert loss_on(plan) == ["a cat", "there[E]"]


def test_chatglm_has_no_turns() -> None:
    with pytest.raises(ConfigError, match="rounds=turns: one turn of the user; for an LLM without turns use rounds=text"):
        plan_prompt(talk("what?", "a cat", "where?"), {}, GLM, TURNS, train=False)


def test_a_frame_of_another_length_is_refused() -> None:
    class Short(type(GLM.framing)):  # type: ignore[misc]
        def frame(self, roles: list[str]) -> list[tuple[int, ...]]:
            return [()]

    with pytest.raises(SeamError, match="1 pieces of frame around 1 turns"):
        plan_prompt(talk("what?"), {}, CharTokenizer(Short()), train=False)


def test_a_new_kind_joins_with_its_tag() -> None:
    sound = item("speech:s")
    object.__setattr__(sound, "type", "sound")  # a kind of a new interface
    conversation = Conversation("talk-1", "vl", (Message("user", (item("image:a"), sound)),))
    style = PromptStyle(tags={**TAGS, "sound": Tag("<Sound>", "</Sound>")})
    plan = plan_prompt(conversation, {"image": [1], "sound": [2]}, GLM, style, train=False)
    assert spell(plan.ids) == "<Image>*</Image><Sound>**</Sound>问：\n答：[G][S]"
    with pytest.raises(DataError, match="talk-1: no interface for `sound` items; there are some for image, video, speech"):
        plan_prompt(conversation, {"image": [1], "sound": [2]}, GLM, train=False)


def test_tags_typed_by_a_user_are_text() -> None:
    plan = plan_prompt(talk(["<Image>", "image:a", "</Image>"]), {"image": [1]}, GLM, train=False)
    assert spell(plan.ids) == "问：<Image><Image>*</Image></Image>\n答：[G][S]"
    assert plan.runs == (SlotRun("image", len("问：<Image><Image>"), 1),)


@pytest.mark.parametrize(
    ("conversation", "counts", "kind", "text"),
    [
        (talk(["image:a", "image:b"], "x"), {"image": [2]}, SeamError, "image item 1 has no vectors; they were given for 1"),
        (talk(["image:a"], "x"), {"image": [2, 2]}, SeamError, "vectors for 2 image items, but the conversation holds 1"),
        (talk("what?", "x"), {"speech": [1]}, SeamError, "vectors for 1 speech items, but the conversation holds 0"),
        (talk(["image:a"], "x"), {"speech": [1]}, SeamError, "image item 0 has no vectors"),
        (talk(["image:a"], "x"), {"image": [0]}, SeamError, "image item 0 with 0 vectors"),
        (talk("what?"), {}, DataError, "talk-1: ends in a question; training needs an answer"),
        (talk("what?", ""), {}, DataError, "talk-1: message 1, an answer, is empty"),
        (talk("what?", " \n"), {}, DataError, "talk-1: message 1, an answer, is empty"),
        (talk("what?", "", "where?", "there"), {}, DataError, "message 1, an answer, is empty"),
        (talk("what?", ["see ", "image:a"]), {"image": [1]}, DataError, "message 1 answers with image; answers are text"),
        (
            Conversation("talk-1", "vl", (*talk("a", "b").messages, Message("system", (item("c"),)))), {}, DataError,
            "message 2 is a system message behind a turn",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(conversation: Conversation, counts: dict, kind: type, text: str) -> None:
    with pytest.raises(kind, match=text):
        plan_prompt(conversation, counts, GLM, train=True)


def test_an_answer_that_the_tokenizer_does_not_know_is_refused() -> None:
    class Deaf(CharTokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.replace("x", ""))

    with pytest.raises(DataError, match="talk-1: the answer 'x' has no tokens"):
        plan_prompt(talk("what?", "x"), {}, Deaf(), train=True)


def test_nothing_asked_at_all_is_refused() -> None:
    class Frameless(type(GLM.framing)):  # type: ignore[misc]
        def frame(self, roles: list[str]) -> list[tuple[int, ...]]:
            return [(), ()]

    with pytest.raises(DataError, match="talk-1: the question is empty"):
        plan_prompt(talk(""), {}, CharTokenizer(Frameless()), PromptStyle(template=PLAIN), train=False)


LONG = talk(["image:a", "one?"], "first", ["speech:s", "two", "image:b"], "second", "three?", "third", system="be kind")
COUNTS = {"image": [4, 2], "speech": [3]}
STEPS = (
    "be kind\n<Image>****</Image>[Round 0]\n问：one?\n答：first\n<Speech>***</Speech>[Round 1]\n问：two<Image>**</Image>\n"
    "答：second\n[Round 2]\n问：three?\n答：[G][S]",
    "be kind\n<Image>****</Image><Speech>***</Speech>[Round 0]\n问：two<Image>**</Image>\n答：second\n"
    "[Round 1]\n问：three?\n答：[G][S]",
    "be kind\n<Image>****</Image><Speech>***</Speech><Image>**</Image>问：three?\n答：[G][S]",
)


def size(text: str) -> int:
    return len(text.replace("[G]", "G").replace("[S]", "S").replace("[E]", "E"))


def test_the_steps_of_truncation() -> None:
    """Every limit from plenty to nothing: history goes round by round, then the answer, media and question never."""
    seen = set()
    for limit in range(size(STEPS[0]) + 10, 0, -1):
        fitting = [step for step in STEPS if size(step) + len("third") + 1 <= limit]
        if size(STEPS[-1]) + 1 > limit:
            with pytest.raises(DataError, match=rf"talk-1: the prompt takes {size(STEPS[-1])} tokens .* 9 of them media"):
                plan_prompt(LONG, COUNTS, GLM, train=True, max_tokens=limit)
            seen.add("refused")
            continue
        plan = plan_prompt(LONG, COUNTS, GLM, train=True, max_tokens=limit)
        assert len(plan.ids) <= limit
        step = fitting[0] if fitting else STEPS[-1]
        answer = "third[E]" if fitting else "third"[: limit - size(step)]
        assert spell(plan.ids) == step + answer
        assert loss_on(plan) == [answer]
        assert sum(run.count for run in plan.runs) == 9
        report = plan.report
        assert report.dropped_rounds == STEPS.index(step)
        assert report.dropped_tokens == size(STEPS[0]) - size(step)
        assert report.moved_media == (0, 1, 3)[STEPS.index(step)]
        assert report.end_lost == (not fitting)
        assert report.cut_answer_tokens == (0 if fitting else 5 - len(answer))
        assert bool(report) == (step != STEPS[0])
        seen.add(STEPS.index(step) if fitting else f"cut {report.cut_answer_tokens}")
    assert seen == {0, 1, 2, "cut 0", "cut 1", "cut 2", "cut 3", "cut 4", "refused"}


def test_truncation_leaves_room_for_generation() -> None:
    exact = size(STEPS[0])
    assert not plan_prompt(LONG, COUNTS, GLM, train=False, max_tokens=exact + 20, answer_room=20).report
    plan = plan_prompt(LONG, COUNTS, GLM, train=False, max_tokens=exact + 20, answer_room=21)
    assert spell(plan.ids) == STEPS[1]
    with pytest.raises(DataError, match=r"the answer at least 21 more, but max_tokens is 60"):
        plan_prompt(LONG, COUNTS, GLM, train=False, max_tokens=60, answer_room=21)
    with pytest.raises(ConfigError, match="answer_room=0"):
        plan_prompt(LONG, COUNTS, GLM, train=False, answer_room=0)


def test_truncation_of_turns_drops_their_labels_too() -> None:
    conversation = talk(["image:a", "one?"], "first", "two?", "second", "three?", "third", system="be kind")
    plan = plan_prompt(conversation, {"image": [2]}, CHAT, ALL, train=True, max_tokens=75)
    assert spell(plan.ids) == "{S:be kind}/{U:<Image>**</Image>two?}/{A:second}/{U:three?}/{A:third}"
    assert loss_on(plan) == ["second}", "third}"]
    assert plan.report.dropped_rounds == 1


def test_a_report_is_a_sentence() -> None:
    plan = plan_prompt(LONG, COUNTS, GLM, train=True, max_tokens=size(STEPS[-1]) + 2)
    gone = size(STEPS[0]) - size(STEPS[-1])
    assert str(plan.report) == (
        f"talk-1: dropped the 2 oldest of 2 rounds of history ({gone} tokens, their 3 media items kept); kept 2 of the 5 "
        f"tokens of the answer, and no end token, to fit max_tokens={size(STEPS[-1]) + 2}"
    )
    assert str(plan_prompt(LONG, COUNTS, GLM, train=True).report) == "talk-1: nothing dropped"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"labels": (IGNORED_LABEL,)}, "labels for another length"),
        ({"labels": (IGNORED_LABEL, 5, IGNORED_LABEL, 5)}, "a label within"),
        ({"runs": (SlotRun("image", 1, 3),)}, "leaves the prompt"),
        ({"runs": (SlotRun("image", 1, 1), SlotRun("image", 1, 1))}, "overlaps another run"),
        ({"runs": (SlotRun("image", 1, 0),)}, "overlaps another run"),
        ({"prompt_tokens": 5}, "a prompt of 5 tokens within 4"),
        ({"prompt_tokens": 0}, "a prompt of 0 tokens within 4"),
    ],
)
def test_a_plan_checks_itself(changes: dict, text: str) -> None:
    fields = {
        "id": "x", "ids": (5, FILLER, 5, 5), "labels": (*[IGNORED_LABEL] * 3, 5), "runs": (SlotRun("image", 1, 1),),
        "prompt_tokens": 3, "report": SpliceReport("x"),
    }
    PromptPlan(**fields)
    with pytest.raises(SeamError, match=text):
        PromptPlan(**{**fields, **changes})


def test_ids_of_the_tests_do_not_collide() -> None:
    assert max(CONTROL) < BASE < VOCABULARY
