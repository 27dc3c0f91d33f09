"""The one normal form: what token tables are made of and what is compared when a hypothesis is scored.

(evaluation.md, Recognition.) NFKC; full- to half-width; digits of any script to 0-9; punctuation, symbols, emoji,
control and invisible characters dropped; lower case; no space beside a Chinese character, single spaces between other
words. Dropped punctuation parts words ("hello,world" -> "hello world"), with three exceptions: the apostrophe inside a
Latin word ("don't", whatever sign it was written with), the decimal point ("3.14") and the thousands comma ("1,000" ->
"1000"). Unknown tokens, written <unk> or U+FFFD, stay as U+FFFD and so count as one wrong character each.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from xllm_speech.text.numbers import read_numbers

NORMALISER = "xllm-zh-1"
"""Name and version of this normal form; raise the number with every change of what `normalise` returns."""

UNKNOWN = "�"

# Han (with extensions, 々 and 〇), bopomofo and kana: written without spaces, one character one token.
_SPACELESS = (
    "\u3005\u3007\u3021-\u3029\u3038-\u303b\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd" + UNKNOWN
)
_SPACELESS_CHARACTER = re.compile(f"[{_SPACELESS}]")
_SPACE_BESIDE = re.compile(f"(?<=[{_SPACELESS}]) +| +(?=[{_SPACELESS}])")
_MER_TOKEN = re.compile(f"[{_SPACELESS}]|[^\\s{_SPACELESS}]+")
_UNK = re.compile("<unk>", re.IGNORECASE)
_APOSTROPHES = re.compile("[\u0027\u0060\u00b4\u02b9\u02bb\u02bc\u2018\u2019\u201b\u2032\uff07]")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


def is_spaceless(character: str) -> bool:
    """True for a character that is written without spaces around it: Han, bopomofo, kana, and the unknown sign."""
    return bool(_SPACELESS_CHARACTER.match(character))


def normalise(text: str, numbers: bool = False) -> str:
    """The normal form of `text` (see the module); with `numbers`, digits are read in Mandarin (123 -> 一百二十三).

    Applying it twice changes nothing. Raises nothing; the result may be empty.
    """
    while True:
        # Dropping one character can let others compose or meet, so passes run until one changes nothing.
        result = _pass(text, numbers)
        if result == text:
            return result
        text = result


def cer_tokens(text: str) -> list[str]:
    """Characters of a text in normal form, spaces left out."""
    return [character for character in text if not character.isspace()]


def mer_tokens(text: str) -> list[str]:
    """Tokens of the mixed error rate, of a text in normal form: a Chinese character, or a Latin word or number."""
    return _MER_TOKEN.findall(text)


def join_words(text: str) -> str:
    """Single spaces, and none beside a Chinese character: the spacing of the normal form."""
    return _SPACE_BESIDE.sub("", " ".join(text.split()))


def _pass(text: str, numbers: bool) -> str:
    text = unicodedata.normalize("NFKC", _part_numerals(_APOSTROPHES.sub("'", _UNK.sub(UNKNOWN, text))))
    # Lower-casing can undo composition (İ), hence the second NFKC.
    text = unicodedata.normalize("NFKC", "".join(map(_digit_or_self, text)).lower())
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    if numbers:
        text = read_numbers(text)
    kept: list[str] = []
    for index, character in enumerate(text):
        before = kept[-1] if kept else " "
        match _fate(character):
            case "keep":
                kept.append(character)
            case "mark":
                if before != " ":  # a combining mark needs a letter to stand on
                    kept.append(character)
            case "part":
                after = text[index + 1] if index + 1 < len(text) else " "
                inside_word = character == "'" and _is_latin(before) and _is_latin(after)
                inside_number = character == "." and before in "0123456789" and after in "0123456789"
                kept.append(character if inside_word or inside_number else " ")
            case _:
                pass
    return join_words("".join(kept))


@lru_cache(maxsize=1 << 16)
def _fate(character: str) -> str:
    """What becomes of a character: `keep`, `mark` (kept after a letter), `part` (a space instead) or `drop`."""
    category = unicodedata.category(character)
    if character == UNKNOWN:
        return "keep"
    if character.isspace() or category[0] in "ZPS":
        return "part"
    if category == "Me" or "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef":
        return "drop"  # enclosing marks and variation selectors change the look of a character only
    if category[0] == "M":
        return "mark"
    if category == "Cn":  # newer ideographs than this Python knows are still characters
        return "keep" if is_spaceless(character) else "drop"
    return "drop" if category[0] == "C" and category != "Co" else "keep"


def _is_latin(character: str) -> bool:
    return character.isalpha() and not is_spaceless(character)


@lru_cache(maxsize=1 << 16)
def _digit_or_self(character: str) -> str:
    return str(unicodedata.decimal(character)) if unicodedata.category(character) == "Nd" else character


def _part_numerals(text: str) -> str:
    """Put a space between a digit and a numeral such as ² ① ½, which NFKC would glue to it (10² is not 102)."""
    if text.isascii():
        return text
    parted: list[str] = []
    for character in text:
        kinds = {unicodedata.category(parted[-1]), unicodedata.category(character)} if parted and parted[-1] else set()
        if "No" in kinds and kinds <= {"No", "Nd"}:
            parted.append(" ")
        parted.append(character)
    return "".join(parted)
