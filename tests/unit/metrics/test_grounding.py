from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from rapidfuzz.distance import Levenshtein

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.metrics.grounding import compare_conditions, grounded_tokens, split_errors
from xllm_speech.metrics.rates import paired_bootstrap
from xllm_speech.metrics.score_file import NormalForm, score_files
from xllm_speech.text.normalise import NORMALISER, cer_tokens, mer_tokens, normalise

FORM = NormalForm(NORMALISER, normalise, cer_tokens, mer_tokens)


def write(path: Path, **rows: str) -> Path:
    path.write_text("".join(f"{id} {text}\n" for id, text in rows.items()), encoding="utf-8")
    return path


def marks(text: str, *captions: str) -> str:
    flags = grounded_tokens(mer_tokens(text), [mer_tokens(caption) for caption in captions])
    return "".join("x" if flag else "." for flag in flags)


def test_words_of_the_caption_are_grounded() -> None:
    assert marks("左边是红色的方块", "一个红色方块") == "...xx.xx"
    assert marks("左边是红色的方块", "的", "左边") == "xx......"
    assert marks("他用python写", "python 书") == "..x."
    assert marks("红", "红") == "."  # a single character stands everywhere
    assert marks("", "红色") == marks("红色").replace(".", "") == ""


def test_errors_are_split_and_add_up() -> None:
    split = split_errors("左边是红色的方块", "左边是洪色的方快吗", ["红色方块"], FORM)
    assert (split.grounded, split.other, split.copied) == ((4, 2), (4, 1), 0)
    copied = split_errors("那是黄色的", "那是红色的", ["红色方块"], FORM)
    assert (copied.grounded, copied.other, copied.copied) == ((0, 0), (5, 1), 1)
    inserted = split_errors("那是", "那是红色", ["红色方块"], FORM)
    assert (inserted.grounded, inserted.copied) == ((0, 2), 2)
    latin = split_errors("用python写", "用pithon写", ["python"], FORM)
    assert (latin.grounded, latin.other) == ((6, 1), (2, 0))
    generator = random.Random(0)
    for _ in range(100):
        reference, hypothesis, caption = (
            "".join(generator.choices("红色方块的ab ", k=generator.randint(0, 9))) for _ in range(3)
        )
        texts = normalise(reference), normalise(hypothesis)
        split = split_errors(*texts, [normalise(caption)], FORM)
        assert split.of("all") == (len(cer_tokens(texts[0])), Levenshtein.distance(*map(cer_tokens, texts)))


def test_conditions_are_compared_in_pairs(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", a="左边是红色的方块", b="今天天气很好", c="三只小狗")
    speech = write(tmp_path / "s", a="左边是洪色的方快", b="今天天汽很好", c="三只小狗")
    right = write(tmp_path / "sv", a="左边是红色的方块", b="今天天汽很好", c="三只小够")
    captions = write(tmp_path / "captions", a="红色方块", b="", c="小狗在跑", unused="x")
    table = compare_conditions(ref, {"S": speech, "S+V": right}, FORM, captions, "试")
    assert (table["baseline"], table["utterances"], table["set"]) == ("S", 3, "试")
    first, second = table["conditions"]["S"], table["conditions"]["S+V"]
    assert first["counts"] == {"N": 18, "S": 3, "D": 0, "I": 0}
    assert (first["difference"], first["grounded"]["difference"]) == (None, None)
    assert second["difference"]["points"] == pytest.approx(100 * (2 - 3) / 18)
    assert (second["grounded"]["N"], second["grounded"]["errors"]) == (6, 1)
    assert second["grounded"]["difference"]["points"] == pytest.approx(100 * (1 - 2) / 6)
    assert second["other"]["difference"]["points"] == 0
    paired = paired_bootstrap([0, 1, 1], [2, 1, 0], [8, 6, 4])
    assert paired is not None
    assert second["difference"] == {"points": paired.difference, "interval": list(paired.interval), "p": paired.p}
    assert table["spread"] == pytest.approx({"lowest": 200 / 18, "highest": 300 / 18, "range": 100 / 18, "mean": 250 / 18})
    assert table["same_text"] == pytest.approx(100 / 3)
    whole = score_files(ref, right, FORM, compare=speech)
    assert second["cer"] == whole["cer"]
    assert second["interval"] == whole["interval"]
    assert second["difference"]["points"] == whole["compare"]["difference"]
    assert second["difference"]["p"] == whole["compare"]["p"]
    assert table["test_set_sha256"] == whole["test_set_sha256"]


def test_without_captions_only_the_rates_are_compared(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", a="红色", b="")
    table = compare_conditions(ref, {"one wording": ref, "another": write(tmp_path / "h", a="红", b="")}, FORM)
    assert "grounded" not in table["conditions"]["another"]
    assert table["conditions"]["another"]["cer"] == 50
    silent = write(tmp_path / "silent", a="")
    assert compare_conditions(silent, {"x": silent, "y": silent}, FORM)["spread"] is None


def test_captions_come_from_cuts_too_and_a_transcript_grounds_nothing(tmp_path: Path) -> None:
    cuts = tmp_path / "cuts.jsonl"
    cuts.write_text("".join(json.dumps({
        "id": id, "start": 0, "duration": 1, "custom": custom, "supervisions": [{"id": id, "text": text, "start": 0}],
    }) + "\n" for id, text, custom in (("a", "红色方块", {"caption": "方块"}), ("b", "红色", None))))
    hyp = write(tmp_path / "hyp", a="红色方", b="红")
    row = compare_conditions(cuts, {"x": hyp, "y": hyp}, FORM, cuts)["conditions"]["x"]
    assert (row["grounded"]["N"], row["grounded"]["errors"], row["other"]["N"], row["other"]["errors"]) == (2, 1, 4, 1)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", a="红色", b="方块")
    with pytest.raises(ConfigError, match="--conditions: expected at least two NAME=FILE"):
        compare_conditions(ref, {"S": ref}, FORM)
    with pytest.raises(DataError, match=r"h lacks 1 of 2 ids: b \(.*ref:2\)"):
        compare_conditions(ref, {"S": ref, "V": write(tmp_path / "h", a="红")}, FORM)
    with pytest.raises(DataError, match="captions: lacks the captions of 1 of 2 utterances, b the first; write an empty one"):
        compare_conditions(ref, {"S": ref, "V": ref}, FORM, write(tmp_path / "captions", a="红"))
    (tmp_path / "captions").write_text('{"id": "a", "text": "x", "caption": 5}\n{"id": "b", "text": ""}\n')
    with pytest.raises(DataError, match=r"captions:1: id a: expected its caption to be a string, found 5"):
        compare_conditions(ref, {"S": ref, "V": ref}, FORM, tmp_path / "captions")
