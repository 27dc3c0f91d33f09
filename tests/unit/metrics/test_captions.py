from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.metrics.bleu import BleuCounts, interval_of
from xllm_speech.metrics.captions import cider, score_texts, token_f1
from xllm_speech.metrics.score_file import NormalForm
from xllm_speech.metrics.transcripts import read_texts
from xllm_speech.text.normalise import NORMALISER, cer_tokens, mer_tokens, normalise

FORM = NormalForm(NORMALISER, normalise, cer_tokens, mer_tokens)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def plain_cider(hypotheses: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """The formula of the paper with its clipping and damping, one n-gram length at a time, over dense vectors."""
    scores = np.zeros(len(hypotheses))
    for length in range(1, 5):
        def grams(tokens: list[str], length: int = length) -> list[str]:
            return ["|".join(tokens[at : at + length]) for at in range(len(tokens) - length + 1)]

        names = sorted({gram for group in [*references, hypotheses] for tokens in group for gram in grams(tokens)})
        holds = np.array([[any(name in grams(tokens) for tokens in group) for name in names] for group in references])
        idf = np.log(len(references)) - np.log(np.maximum(1, holds.sum(0)))
        for item, (tokens, group) in enumerate(zip(hypotheses, references, strict=True)):
            vector = np.array([grams(tokens).count(name) for name in names]) * idf
            for other in group:
                target = np.array([grams(other).count(name) for name in names]) * idf
                if np.linalg.norm(vector) and np.linalg.norm(target):
                    cosine = np.minimum(vector, target) @ target / np.linalg.norm(vector) / np.linalg.norm(target)
                    scores[item] += cosine * math.exp(-((len(tokens) - len(other)) ** 2) / 72) / len(group) / 4
    return list(1000 * scores)


def test_cider_is_the_published_formula() -> None:
    generator = random.Random(1)
    sentence = lambda: generator.choices("一个红色的方块在左边圆", k=generator.randint(1, 12))  # noqa: E731
    references = [[sentence() for _ in range(generator.randint(1, 3))] for _ in range(9)]
    hypotheses = [generator.choice(group) if generator.random() < 0.4 else sentence() for group in references]
    assert cider(hypotheses, references) == pytest.approx(plain_cider(hypotheses, references))
    exact = cider([list("红色方块"), list("绿色圆形")], [[list("红色方块")], [list("绿色圆形")]])
    assert exact == pytest.approx([1000, 1000])
    assert cider([[], ["x"]], [[list("红色")], [[]]]) == [0, 0]
    with pytest.raises(DataError, match="at least two items to tell common words from rare ones; there is 1"):
        cider([["a"]], [[["a"]]])


def plain_bleu(hypotheses: list[list[str]], references: list[list[list[str]]], most: int) -> float:
    log_precision, ours, closest = 0.0, sum(map(len, hypotheses)), 0
    for tokens, group in zip(hypotheses, references, strict=True):
        closest += min((abs(len(other) - len(tokens)), len(other)) for other in group)[1]
    for length in range(1, most + 1):
        hits = total = 0
        for tokens, group in zip(hypotheses, references, strict=True):
            def grams(words: list[str], length: int = length) -> Counter:
                return Counter(zip(*(words[at:] for at in range(length)), strict=False))

            limit: Counter = Counter()
            for other in group:
                limit |= grams(other)
            hits, total = hits + (grams(tokens) & limit).total(), total + grams(tokens).total()
        if not hits:
            return 0.0
        log_precision += math.log(hits / total) / most
    return 100 * math.exp(log_precision + min(0.0, 1 - closest / ours))


def common_length(first: list[str], second: list[str]) -> int:
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for row, one in enumerate(first, 1):
        for column, two in enumerate(second, 1):
            longest = max(table[row - 1, column], table[row, column - 1])
            table[row, column] = table[row - 1, column - 1] + 1 if one == two else longest
    return int(table[-1, -1])


def test_captions_are_scored_by_characters_with_several_references(tmp_path: Path) -> None:
    captions = {
        "a": (["一个红色的正方形在左边。", "左边有红色方块"], "一个红色正方形在左边"),
        "b": (["A cat sits on the mat!"], "a cat sat on the mat"),
        "c": (["三只狗在跑", "有三只狗", "狗们在奔跑"], "三只狗在奔跑"),
    }
    ref = write(tmp_path / "ref", [{"id": id, "text": texts} for id, (texts, _) in captions.items()])
    hyp = write(tmp_path / "hyp", [{"id": id, "text": text} for id, (_, text) in reversed(captions.items())])
    score = score_texts(ref, hyp, "caption", FORM, "试")
    hypotheses = [mer_tokens(normalise(text)) for _, text in captions.values()]
    references = [[mer_tokens(normalise(text)) for text in texts] for texts, _ in captions.values()]
    scores = score["scores"]
    assert list(scores) == ["cider", "rouge_l", "bleu1", "bleu2", "bleu3", "bleu4"]
    assert scores["cider"] == pytest.approx(np.mean(plain_cider(hypotheses, references)))
    for most in range(1, 5):
        assert scores[f"bleu{most}"] == pytest.approx(plain_bleu(hypotheses, references, most))
    rouge = [
        max(200 * common_length(tokens, other) / (len(tokens) + len(other)) for other in group)
        for tokens, group in zip(hypotheses, references, strict=True)
    ]
    assert [row["rouge_l"] for row in score["per_item"]] == pytest.approx(rouge)
    assert (score["set"], score["items"], score["references"], score["normaliser"]) == ("试", 3, 6, NORMALISER)
    low, high = score["interval"]["rouge_l"]
    assert low <= scores["rouge_l"] <= high
    json.dumps(score, allow_nan=False)


def test_answers_count_the_best_reference(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", [
        {"question_id": 0, "text": "红色。"}, {"question_id": 1, "text": ["two", "2 dogs"]},
        {"question_id": 2, "text": "黄色圆形"}, {"question_id": 3, "text": ""},
    ])
    hyp = write(tmp_path / "hyp", [
        {"question_id": 0, "text": " 红 色"}, {"question_id": 1, "text": "dogs: 3 2"}, {"question_id": 2, "text": ""},
        {"question_id": 3, "text": ""},
    ])
    score = score_texts(ref, hyp, "answer", FORM)
    assert [(row["exact_match"], row["token_f1"]) for row in score["per_item"]] == [
        (100, 100), (0, pytest.approx(80)), (0, 0), (100, 100),
    ]
    assert score["scores"] == {"exact_match": 50, "token_f1": pytest.approx(70)}
    assert token_f1(list("红红蓝"), list("红蓝蓝蓝")) == pytest.approx(2 * 2 / 7)


def test_translations_are_scored_as_they_stand(tmp_path: Path) -> None:
    ref, hyp = tmp_path / "ref", tmp_path / "hyp"
    ref.write_text("a 今天天气很好，我们去公园。\nb 他喜欢猫。\n", encoding="utf-8")
    hyp.write_text("a 今天天气很好，我们去公园。\nb 他喜欢猫。\n", encoding="utf-8")
    score = score_texts(ref, hyp, "translation", FORM)
    assert score["scores"] == pytest.approx({"bleu": 100, "chrf": 100})
    assert "tok:zh" in score["tokens"]
    hyp.write_text("a 今天天气很好，我们去公园。\nb 他喜欢狗。\n", encoding="utf-8")
    worse = score_texts(ref, hyp, "translation", FORM)
    same = list("今天天气很好，我们去公园。")
    expected = plain_bleu([same, list("他喜欢狗。")], [[same], [list("他喜欢猫。")]], 4)
    assert worse["scores"]["bleu"] == pytest.approx(expected)
    # chrF of the short one: the mean over its five lengths of the F score (beta 2) of character n-grams
    shares = []
    for length in range(1, 6):
        ours, theirs = (Counter(text[at : at + length] for at in range(6 - length)) for text in ("他喜欢狗。", "他喜欢猫。"))
        shares.append((ours & theirs).total() / (6 - length))
    assert worse["per_item"][1]["chrf"] == pytest.approx(100 * np.mean(shares))
    ref.write_text("a He likes cats.\n")
    hyp.write_text("a He likes dogs.\n")
    assert "tok:13a" in score_texts(ref, hyp, "translation", FORM)["tokens"]


def test_two_systems_are_compared_on_the_same_items(tmp_path: Path) -> None:
    generator = random.Random(3)
    references = ["".join(generator.choices("一个红色的方块在左边圆", k=8)) for _ in range(30)]

    def spoil(share: float) -> list[dict]:
        return [
            {"id": str(number), "text": "".join("没" if generator.random() < share else letter for letter in text)}
            for number, text in enumerate(references)
        ]

    ref = write(tmp_path / "ref", [{"id": str(number), "text": text} for number, text in enumerate(references)])
    good, bad = write(tmp_path / "good", spoil(0.1)), write(tmp_path / "bad", spoil(0.4))
    for kind in ("caption", "answer", "translation"):
        score = score_texts(ref, good, kind, FORM, compare=bad)
        other = score_texts(ref, bad, kind, FORM)
        assert score["compare"]["scores"] == other["scores"]
        assert set(score["compare"]["differences"]) == set(score["scores"]) == set(score["interval"])
        for name, gap in score["compare"]["differences"].items():
            low, high = gap["interval"]
            assert 0 < low <= gap["points"] <= high or name == "exact_match", name
            assert gap["p"] < 0.05 or name == "exact_match"
            low, high = score["interval"][name]
            assert low <= score["scores"][name] <= high or name == "chrf"
        if kind != "translation":
            assert score["compare"]["differences"]["bleu4" if kind == "caption" else "token_f1"]["points"] == pytest.approx(
                score["scores"]["bleu4" if kind == "caption" else "token_f1"]
                - other["scores"]["bleu4" if kind == "caption" else "token_f1"]
            )
    same = score_texts(ref, good, "caption", FORM, compare=good)["compare"]["differences"]
    assert all((gap["points"], gap["interval"], gap["p"]) == (0, [0, 0], 1) for gap in same.values())


def test_the_interval_of_bleu_is_that_of_a_loop_over_whole_corpora(tmp_path: Path) -> None:
    hypotheses = [list("红色的方块在左"), list("绿圆"), list("一个蓝色方块"), list("黄色的圆在右边")]
    texts = [["红色的方块在左边"], ["绿色的圆", "圆"], ["有一个蓝色方块"], ["黄色方块在右边"]]
    references = [[list(text) for text in group] for group in texts]
    counts = BleuCounts.of([" ".join(row) for row in hypotheses], [[" ".join(row) for row in group] for group in references],
                           "none", "none")
    for index in ([0, 1, 2, 3], [3, 3, 0, 2], [1, 1, 1, 2]):
        expected = plain_bleu([hypotheses[place] for place in index], [references[place] for place in index], 2)
        assert counts.score(2, np.array(index)) == pytest.approx(expected)
    drawn = counts.draw(2, 5)
    assert np.array_equal(drawn, counts.draw(2, 5))
    assert interval_of(drawn)[0] < counts.score(2) < interval_of(drawn)[1]


def test_unknown_kinds_and_unanswered_items_are_refused(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", [{"id": "a", "text": ["x", "y"]}, {"id": "b", "text": "x"}])
    hyp = write(tmp_path / "hyp", [{"id": "a", "text": "x"}, {"id": "c", "text": "x"}])
    with pytest.raises(ConfigError, match="`poem` is not one of caption, answer, translation"):
        score_texts(ref, hyp, "poem", FORM)
    with pytest.raises(DataError, match=r"hyp lacks 1 of 2 ids: b \(.*ref:2\); .*does not know: c \(.*hyp:2\)"):
        score_texts(ref, hyp, "caption", FORM)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no transcript in it"),
        ("[]", "no text in it"),
        ('{"id": "a", "text": ["x"]}', r't:1: id a: expected "text" \(or "caption"\) to be a string'),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', r"t:2: id a is doubled, first on line 1"),
        ('{"text": "x"}', r't:1: expected "id" \(or "question_id", "image_id"\)'),
        ('{\n"images": []\n}', r'expected JSON lines, one JSON array, or one object with "annotations"'),
    ],
)
def test_broken_texts_are_refused_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / "t")


def test_coco_captions_are_read(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "coco").write_text(json.dumps({"info": {}, "annotations": [
        {"id": 7, "image_id": 1, "caption": "a cat"}, {"id": 8, "image_id": 2, "caption": "a dog"},
        {"id": 9, "image_id": 1, "caption": "one cat"},
    ]}))
    rows = read_texts(tmp_path / "coco", several=True)
    assert [(row.id, row.fields["texts"]) for row in rows] == [("1", ["a cat", "one cat"]), ("2", ["a dog"])]
    with pytest.raises(DataError, match="id 1 is doubled"):
        read_texts(tmp_path / "coco")
    folder = shared_data / "annotation_samples" / "aic_caption_eval"
    good = read_texts(folder / "id_to_test_caption.json")
    assert good[0].text == "一个面对着蓝天大海的女人坐在海边的沙滩椅子"
    assert len(read_texts(folder / "id_to_words.json", several=True)) < len(json.loads(
        (folder / "id_to_words.json").read_text(encoding="utf-8"))["annotations"])
    for name, message in (("key_error.json", "item 1: .*expected \"text\""), ("has_null_data.json", "item 2: expected \"id\"")):
        with pytest.raises(DataError, match=message):
            read_texts(folder / name)
    for name in ("less_data_number.json", "more_data_number.json", "wrong_name.json"):
        with pytest.raises(DataError, match="ids"):
            score_texts(folder / "id_to_test_caption.json", folder / name, "caption", FORM)
