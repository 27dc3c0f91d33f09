from __future__ import annotations

from collections import Counter

import pytest
from prompt_tools import talk

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.prompts import INSTRUCTIONS, sample_instruction, with_caption, with_instructions


def test_sets_are_those_of_the_release() -> None:
    assert {task: len(wordings) for task, wordings in INSTRUCTIONS.items()} == {
        "asr": 4, "masr": 2, "caption": 4, "video": 4, "vsd": 4
    }
    assert "请将语音转换成书面文字。" in INSTRUCTIONS["asr"]
    assert "根据图片请忠实地识别该语音" in INSTRUCTIONS["masr"]
    assert all(len(set(wordings)) == len(wordings) for wordings in INSTRUCTIONS.values())


def test_sampling_is_even_repeatable_and_changes_with_every_part() -> None:
    drawn = [sample_instruction("asr", 1, 0, f"utt-{number}") for number in range(2000)]
    assert drawn == [sample_instruction("asr", 1, 0, f"utt-{number}") for number in range(2000)]
    counts = Counter(drawn)
    assert set(counts) == set(INSTRUCTIONS["asr"])
    assert all(420 < count < 580 for count in counts.values())
    for other in (
        [sample_instruction("asr", 2, 0, f"utt-{number}") for number in range(2000)],
        [sample_instruction("asr", 1, 1, f"utt-{number}") for number in range(2000)],
    ):
        assert 300 < sum(a == b for a, b in zip(drawn, other, strict=True)) < 700


def test_sampling_does_not_depend_on_the_process() -> None:
    # Fixed for good: a resumed run, another rank and another machine must draw the same.
    assert [sample_instruction("vsd", 0, epoch, "d1_r2") for epoch in range(4)] == [
        INSTRUCTIONS["vsd"][index] for index in EXPECTED
    ]


EXPECTED = (2, 1, 3, 1)


def test_a_task_without_instructions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`text`; there are some for asr, caption, masr"):
        sample_instruction("text", 0, 0, "x")
    assert sample_instruction("text", 0, 0, "x", {"text": ["one"]}) == "one"


def test_messages_of_media_alone_get_an_instruction_behind_the_media() -> None:
    conversation = talk(["image:a", "speech:b"], "yes", "a typed question", "no", ["speech:c"], task="vsd")
    filled = with_instructions(conversation, seed=3, epoch=5)
    first, typed, third = (message for message in filled.messages if message.role == "user")
    assert [part.type for part in first.items] == ["image", "speech", "text"]
    assert [part.type for part in third.items] == ["speech", "text"]
    assert typed == conversation.messages[2]
    assert {first.items[-1].text, third.items[-1].text} <= set(INSTRUCTIONS["vsd"])
    assert filled.messages[1] == conversation.messages[1]
    assert len(conversation.messages[0].items) == 2
    texts = {with_instructions(conversation, epoch=epoch).messages[0].items[-1].text for epoch in range(40)}
    assert texts == set(INSTRUCTIONS["vsd"])


def test_one_wording_for_all() -> None:
    conversation = talk(["image:a"], task="caption")
    for number, wording in enumerate(INSTRUCTIONS["caption"]):
        assert with_instructions(conversation, wording=number).messages[0].items[-1].text == wording
    with pytest.raises(ConfigError, match="wording 4: the task `caption` has wordings 0 to 3"):
        with_instructions(conversation, wording=4)


def test_media_alone_in_a_task_without_instructions_is_refused() -> None:
    with pytest.raises(DataError, match=r"talk-1: message 2 has no text, and the task `vl` no instructions"):
        with_instructions(talk(["image:a", "what?"], "a cat", ["image:b"]))


def test_a_caption_stands_in_front_of_the_question_and_after_the_media() -> None:
    asked = with_instructions(talk(["image:a", "speech:b"], "yes", ["speech:c"], task="masr"), wording=0)
    told = with_caption(asked, "红色的圆形")
    assert told.messages[:2] == asked.messages[:2]
    assert [item.type for item in told.messages[2].items] == ["speech", "text"]
    assert told.messages[2].items[-1].text == f"图片的内容：红色的圆形\n{INSTRUCTIONS['masr'][0]}"
    answered = with_caption(with_instructions(talk(["speech:c"], "yes", task="asr"), wording=0), "红色的圆形")
    assert answered.messages[0].items[-1].text.startswith("图片的内容：红色的圆形\n请")
    assert answered.messages[1].items[0].text == "yes"
    assert with_caption(asked, "") == with_caption(asked, None) == asked
    with pytest.raises(DataError, match="talk-1: a caption stands before an instruction"):
        with_caption(talk(["speech:c"]), "红色的圆形")
