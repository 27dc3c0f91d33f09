from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm_speech.text.normalise import cer_tokens, is_spaceless, mer_tokens, normalise

AWKWARD = "你好々〇ー旗 aZéÉİßΣ'’‘´.,，。%-−⁄½²①Ⅷ１２3٣९\u200b\ufeff\u0301\ufe0f\u20e3🙂\u200d�<unk>\t\n\u3000㎏ﬁ㈱\ud800\x00▁_"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  ，。！？ ", ""),
        ("今天 天气，很好。", "今天天气很好"),
        ("ＡＢＣ１２３，ｄｅｆ", "abc123 def"),
        ("用 Python 写 Hello,  World 程序！", "用python写hello world程序"),
        ("Don’t stop, it`s  I'm", "don't stop it's i'm"),
        ("'tis the dogs' 'quoted'", "tis the dogs quoted"),
        ("你'好' x'3", "你好x 3"),
        ("e-mail T恤 a_b a/b", "e mail t恤a b a b"),
        ("3.14 和 1,000 和 12,34", "3.14和1000和12 34"),
        ("3. 14", "3 14"),
        ("版本1.2.3。", "版本1.2.3"),
        ("\ufeff你\u200b好\u200d\u00ad吗", "你好吗"),
        ("e\u0301te\u200b\u0301", "été"),
        ("\u0301a", "a"),
        ("1️⃣ 好🙂👩‍🚀", "1好"),
        ("葛\U000e0100城", "葛城"),
        ("10² ½", "10 2 1 2"),
        ("٣٤ १२", "34 12"),
        ("㎏ ﬁ Ⅷ", "kg fi viii"),
        ("一<UNK>二� 三", "一�二�三"),
        ("人々は 〇", "人々は〇"),
        ("ＣＯ₂ \u2f00", "co2一"),
        ("안녕 하세요", "안녕 하세요"),
        ("▁hello▁world", "hello world"),
        ("\U00031350 字", "\U00031350字"),
    ],
)
def test_normalise_table(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "零"), ("5", "五"), ("10", "十"), ("15", "十五"), ("20", "二十"), ("100", "一百"), ("101", "一百零一"),
        ("110", "一百一十"), ("123", "一百二十三"), ("200", "二百"), ("1000", "一千"), ("1001", "一千零一"),
        ("1010", "一千零一十"), ("1100", "一千一百"), ("10000", "一万"), ("10001", "一万零一"), ("10500", "一万零五百"),
        ("20304", "二万零三百零四"), ("100500", "十万零五百"), ("110000", "十一万"), ("1000000", "一百万"),
        ("100000000", "一亿"), ("100000001", "一亿零一"), ("100010000", "一亿零一万"), ("1200000000", "十二亿"),
        ("1234567890", "十二亿三千四百五十六万七千八百九十"), ("1000000000000", "一万亿"),
        ("1,234,567", "一百二十三万四千五百六十七"),
        ("007", "零零七"), ("13800138000", "一三八零零一三八零零零"),
        ("12345678901234567", "一二三四五六七八九零一二三四五六七"),
        ("3.14", "三点一四"), ("0.05", "零点零五"), ("10.50", "十点五零"), ("1.2.3", "一点二点三"),
        ("50%", "百分之五十"), ("５０％", "百分之五十"), ("3.5 %", "百分之三点五"), ("100％的", "百分之一百的"),
        ("-5度", "负五度"), ("(-3)", "负三"), ("-2%", "负百分之二"), ("−7", "负七"), ("3-5个", "三五个"), ("a-5", "a五"),
        ("½", "二分之一"), ("3⁄4", "四分之三"),
        ("1998年", "一九九八年"), ("2008 年8月8日", "二零零八年八月八日"), ("300年", "三百年"), ("12000年", "一万二千年"),
        ("第１２３页", "第一百二十三页"), ("mp3 和 iPhone 15", "mp三和iphone十五"), ("无数字", "无数字"),
    ],
)  # fmt: skip
def test_numbers_are_read(text: str, expected: str) -> None:
    assert normalise(text, numbers=True) == expected


def test_numbers_stay_digits_by_default() -> None:
    assert normalise("共 123 个，50%") == "共123个50"


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(AWKWARD)), max_size=30), st.booleans())
@settings(max_examples=600, deadline=None)
def test_normal_form_properties(text: str, numbers: bool) -> None:
    result = normalise(text, numbers=numbers)
    assert normalise(result, numbers=numbers) == result
    result.encode("utf-8")  # lone surrogates would make every output file unwritable
    assert result == result.strip()
    assert "  " not in result
    for index, character in enumerate(result):
        category = unicodedata.category(character)
        inside = character in "'." and 0 < index < len(result) - 1
        assert inside or character == "�" or category[0] in "LMN" or character == " " or category in ("Co", "Cn")
        if character == " ":
            assert not is_spaceless(result[index - 1])
            assert not is_spaceless(result[index + 1])
    if numbers:
        assert not any(character in "0123456789" for character in result)


@given(st.text(alphabet=st.sampled_from("你好 aB1.,'，" + "。"), max_size=20))
@settings(max_examples=200, deadline=None)
def test_tokens_cover_the_text(text: str) -> None:
    form = normalise(text)
    assert "".join(cer_tokens(form)) == form.replace(" ", "") == "".join(mer_tokens(form))


def test_tokens_of_mixed_text() -> None:
    form = normalise("用python写 hello world, don't 3.14程序�")
    assert mer_tokens(form) == ["用", "python", "写", "hello", "world", "don't", "3.14", "程", "序", "�"]
    assert cer_tokens("你 好 ab") == ["你", "好", "a", "b"]
    assert cer_tokens("") == mer_tokens("") == []


def test_real_transcripts_keep_every_chinese_character(shared_data) -> None:
    lines = (shared_data / "aishell1_sample_S0150" / "kaldi" / "text").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 300
    for line in lines:
        text = line.split(maxsplit=1)[1]
        chinese = [character for character in text if is_spaceless(character)]
        assert [character for character in normalise(text) if is_spaceless(character)] == chinese
