"""The words of a judge's verdict in one form: who is meant, which scale is spoken of, and what counts as a score.

Every way to name an assistant ("Assistant 1", "the first response", 助手一) becomes one sign, so that the digit of a name is
never taken for a score, and the patterns of `verdicts` need to know one name only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

LOWEST, HIGHEST = 0.0, 10.0  # judges asked for 1 to 10 give a 0 now and then

# One sign for each assistant and one for both, from the private use area: no judge writes them.
ONE, TWO, BOTH = "\ue001", "\ue002", "\ue003"
NAME = f"[{ONE}{TWO}]"
AND = r"(?:,?\s*(?:\band\b|&|和|与|及|、|,|/|\bvs\b\.?)\s*)"


def ignoring_case(pattern: str) -> re.Pattern[str]:
    """The compiled pattern, for capital and small letters."""
    return re.compile(pattern, re.IGNORECASE)


_SIGNS = dict.fromkeys(("1", "one", "a", "一", "甲", "first", "former"), ONE)
_SIGNS |= dict.fromkeys(("2", "two", "b", "二", "乙", "second", "latter"), TWO)
_WHO = r"assistants?|助手|助理"
_WHAT = r"response|answer|model|回答|答案|模型"
_NAMED = ignoring_case(
    rf"(?:the\s+)?(?<![A-Za-z])(?:AI\s*)?(?:{_WHO})\s*(?:no\.?\s*|number\s*)?"
    r"(?P<who>[12](?!\.?\d)|(?:one|two|(?-i:[AB]))(?![A-Za-z])|[一二甲乙])"
    rf"|(?<![A-Za-z])(?:{_WHAT})\s*(?P<what>[12](?!\.?\d)|(?-i:[AB])(?![A-Za-z]))"
    r"|(?:the\s+)?\b(?P<english>first|second|former|latter)\s+(?:AI\s+)?(?:assistant|response|answer|one|model)\b"
    rf"|第(?P<chinese>[一二])[个位名]?(?:AI)?(?:{_WHO}|回答|答案|模型)"
)
_SHORT_LIST = re.compile(rf"({NAME})({AND})([12]|[AB])(?![\w.]*\d)(?![A-Za-z])")
_BOTH_NAMED = ignoring_case(
    r"\b(?:both|the\s+two|two)\s+(?:of\s+the\s+)?(?:AI\s+)?(?:assistants|responses|answers|models)\b|\bboth\s+of\s+them\b"
    r"|(?:这?两[个位名]|双方)(?:AI)?(?:助手|助理|回答|模型)?|两者"
)
_BOTH_LISTED = ignoring_case(rf"\bboth\s+{ONE}{AND}{TWO}|{ONE}{AND}{TWO}\s*(?:\b(?:both|each)\b|都|均|各)")
_SCALE = ignoring_case(
    r"(?:\b(?:on|using|with|in)\s+)?\(?(?:an?\s+|the\s+)?scale\s*(?:of|from|:)?\s*[01]\s*(?:-|–|to)\s*10\)?(?:\s*分)?"
    r"|\(?(?:满分\s*(?:为|是|:)?\s*10\s*分?|从?[01]\s*(?:-|–|~|到|至)\s*10\s*分?(?:制|中)?"
    r"|out of a (?:possible|maximum) 10)\)?"
)

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)  # what a model says to itself is no verdict

_ENGLISH_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ENGLISH = {word: float(value) for value, word in enumerate(_ENGLISH_WORDS)}
_CHINESE = {word: float(value) for value, word in enumerate("零一二三四五六七八九十")} | {"两": 2.0}
_HAN = f"[{''.join(_CHINESE)}]"
DIGITS = r"(?<![A-Za-z0-9.])(?<!^-)(?<! -)\d{1,2}(?:\.\d+)?(?!\.?\d|\s*%|[A-Za-z])"
_WORD = rf"(?<![A-Za-z])(?:{'|'.join(_ENGLISH)})(?![A-Za-z])|{_HAN}(?:点{_HAN})?(?=\s*(?:分|$|[,、和与及\s]))"
_POINTS = r"分(?![别析钟类辨])"
OF_TEN = rf"\s*(?:/\s*(?:10|ten)(?![\d.]*\d)|out\s+of\s+(?:10|ten)\b|{_POINTS})"
UNIT = rf"(?:{OF_TEN}|\s*\b(?:points?|marks?)\b)"
_UP_TO = r"(?:\s*(?:-|–|—|~|到|至)\s*)"
_NUMBER = re.compile(f"{DIGITS}|{_WORD}", re.IGNORECASE)


def value(name: str, number: str = f"(?:{DIGITS}|{_WORD})", unit: str = f"{UNIT}*+") -> str:
    """Pattern of one score as group `name`: a number or a range, then its unit, never given back ("9/10" is no pair)."""
    return rf"(?P<{name}>{number}(?:{UNIT}?{_UP_TO}{number})?){unit}"


def score_of(text: str) -> float | None:
    """One score: digits or a word; the middle of a range; None outside the scale (0 to 10)."""
    values = []
    for part in _NUMBER.findall(text):
        whole, _, decimal = part.lower().partition("点")
        if whole[0].isdigit():
            values.append(float(whole))
        elif whole in _ENGLISH:
            values.append(_ENGLISH[whole])
        else:
            values.append(_CHINESE[whole] + (_CHINESE[decimal] / 10 if decimal else 0))
    if not values or not all(LOWEST <= score <= HIGHEST for score in values):
        return None
    return sum(values) / len(values)


def plain(text: str) -> str:
    """The text in one form: NFKC, no markdown or quotation marks, assistants as signs, no mention of the scale."""
    text = unicodedata.normalize("NFKC", text.replace("。", ".\n").replace("’", "'").replace("\r", "\n"))
    text = re.sub(r"[\ue000-\ue00f]", " ", _THOUGHT.sub("\n", text))
    text = re.sub(r'[*`#~"“”「」『』<>]', "", text).replace("_", " ").replace("|", ":").replace("\\", " ")
    text = re.sub(r"[^\S\n]+", " ", text)
    text = _NAMED.sub(lambda match: _SIGNS[next(group for group in match.groups() if group).lower()], text)
    text = _SHORT_LIST.sub(lambda match: match[1] + match[2] + _SIGNS[match[3].lower()], text)
    return _SCALE.sub(" ", _BOTH_LISTED.sub(BOTH, _BOTH_NAMED.sub(BOTH, text)))


def sentences(text: str) -> Iterator[str]:
    """Sentences of a plain text; a line end ends one too."""
    for line in text.split("\n"):
        yield from (part for part in re.split(r"(?<=[.!?])\s+", line) if part.strip())
