from __future__ import annotations

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.prompts import CHINESE, ENGLISH, PLAIN, TAGS, PromptStyle, PromptTemplate, Tag, find_template


def test_names_in_configurations() -> None:
    assert [find_template(name) for name in ("chinese", "english", "plain")] == [CHINESE, ENGLISH, PLAIN]
    with pytest.raises(ConfigError, match="template `french` is not one of chinese, english, plain"):
        find_template("french")


def test_header_counts_from_the_first_round() -> None:
    assert [CHINESE.header(index) for index in range(2)] == ["[Round 0]\n", "[Round 1]\n"]
    assert PromptTemplate("", "", first_round=1).header(0) == "[Round 1]\n"
    with pytest.raises(ConfigError, match="may hold"):
        PromptTemplate("", "", round="[Round {i}]")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rounds": "many"}, "rounds=many is not one of text, turns"),
        ({"loss": "first"}, "loss=first is not one of last, all"),
        ({"media_order": "any"}, "media_order=any is not one of template, given"),
        ({"loss": "all"}, "loss=all needs rounds=turns"),
        ({"tags": {"text": Tag("<T>", "</T>")}}, "`text` is not a medium"),
    ],
)
def test_a_style_that_cannot_be_is_refused(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PromptStyle(**options)


def test_styles_do_not_share_their_tags() -> None:
    style = PromptStyle()
    style.tags["sound"] = Tag("<Sound>", "</Sound>")  # type: ignore[index]
    assert "sound" not in TAGS
    assert "sound" not in PromptStyle().tags
