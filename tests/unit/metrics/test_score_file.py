from __future__ import annotations

import json
from pathlib import Path

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.metrics.score_file import NormalForm, reference_hash, score_files, write_score

# The normal form comes in from outside; this one is enough to see that both sides pass through it.
FORM = NormalForm("plain-1", lambda text: text.lower().replace("，", ""), lambda text: list(text.replace(" ", "")), str.split)


def write(path: Path, **rows: str) -> Path:
    path.write_text("".join(f"{id} {text}\n" for id, text in rows.items()), encoding="utf-8")
    return path


def test_counts_and_rates(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", a="今天天气", b="ABC", c="", d="好，的", e="")
    hyp = write(tmp_path / "hyp", e="", d="好的", c="嗯嗯嗯嗯", b="abcd", a="今大气")
    score = score_files(ref, hyp, FORM, set_name="tiny")
    assert score["counts"] == {"N": 9, "S": 1, "D": 1, "I": 5}
    assert score["cer"] == pytest.approx(100 * 7 / 9)
    assert score["interval"][0] < score["cer"] < score["interval"][1]
    assert score["ser"] == 60.0
    assert score["loop_rate"] == 20.0
    assert score["hallucination"] == {"silent_utterances": 2, "answered": 1, "characters": 4}
    assert score["hallucination_rate"] == 2.0
    assert (score["normaliser"], score["set"], score["utterances"], score["decoding"]) == ("plain-1", "tiny", 5, None)
    rows = {row["id"]: row for row in score["per_utterance"]}
    assert list(rows) == ["a", "b", "c", "d", "e"]
    assert rows["a"]["operations"] in ("CSDC", "CDSC")
    assert rows["b"]["operations"] == "CCCI"
    assert rows["d"]["operations"] == "CC"
    for row in rows.values():
        letters = row["operations"]
        assert len(letters) - letters.count("I") == len(row["reference"])
        assert len(letters) - letters.count("D") == len(row["hypothesis"])


def test_mixed_error_rate_counts_words(tmp_path: Path) -> None:
    ref, hyp = write(tmp_path / "ref", a="hello world again"), write(tmp_path / "hyp", a="hello word")
    score = score_files(ref, hyp, FORM)
    assert score["mer_counts"] == {"N": 3, "S": 1, "D": 1, "I": 0}
    assert score["mer"] == pytest.approx(200 / 3)
    assert score["counts"]["N"] == 15


def test_no_reference_text_gives_null_rates(tmp_path: Path) -> None:
    ref, hyp = write(tmp_path / "ref", a="", b=""), write(tmp_path / "hyp", a="好", b="")
    score = score_files(ref, hyp, FORM, compare=write(tmp_path / "other", a="", b=""))
    assert (score["cer"], score["mer"], score["interval"]) == (None, None, None)
    assert score["counts"] == {"N": 0, "S": 0, "D": 0, "I": 1}
    assert score["ser"] == 50.0
    assert (score["compare"]["difference"], score["compare"]["p"]) == (None, None)
    write_score(tmp_path / "score.json", score)
    assert json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))["cer"] is None


def test_comparison(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", a="一二三四五", b="六七八九十", c="甲乙丙丁")
    hyp = write(tmp_path / "hyp", a="一二三四五", b="六七八九", c="甲乙丙")
    other = write(tmp_path / "other", a="一二三", b="六七", c="甲乙丙丁")
    compare = score_files(ref, hyp, FORM, compare=other)["compare"]
    assert compare["counts"] == {"N": 14, "S": 0, "D": 5, "I": 0}
    assert compare["difference"] == pytest.approx(100 * (2 - 5) / 14)
    assert (compare["better"], compare["worse"]) == (2, 1)
    assert compare["interval"][0] < compare["difference"] < compare["interval"][1]
    with pytest.raises(DataError, match=r"short lacks 1 of 3 ids: c \(.*ref:3\)"):
        score_files(ref, hyp, FORM, compare=write(tmp_path / "short", a="一", b="六"))


def test_sidecar_groups_and_undecoded(tmp_path: Path) -> None:
    ref, hyp = tmp_path / "ref.jsonl", tmp_path / "hyp.jsonl"
    rows = [("a", "今天", "s1", ["x", "y"]), ("b", "好的", "s2", ["x"]), ("c", "天气", "s1", None)]
    ref.write_text("".join(json.dumps({"id": id, "text": text, "speaker": speaker, "sets": sets}) + "\n"
                           for id, text, speaker, sets in rows), encoding="utf-8")
    answers = [{"id": "a", "text": "今天"}, {"id": "b", "text": "", "error": "broken file"}, {"id": "c", "text": "天"}]
    hyp.write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    Path(f"{hyp}.meta.json").write_text(json.dumps({"prompt": "识别", "audio_sec": 20.0, "wall_sec": 2.0}), encoding="utf-8")
    score = score_files(ref, hyp, FORM, groups=("speaker", "sets", "dialect"))
    assert score["undecoded"] == 1
    assert score["per_utterance"][1]["error"] == "broken file"
    assert score["counts"]["D"] == 3
    assert {name: row["cer"] for name, row in score["groups"]["speaker"].items()} == {"s1": 25.0, "s2": 100.0}
    assert {name: row["utterances"] for name, row in score["groups"]["sets"].items()} == {"": 1, "x": 2, "y": 1}
    assert "dialect" not in score["groups"]
    assert score["decoding"] == {"prompt": "识别", "audio_sec": 20.0, "wall_sec": 2.0, "rtf": 0.1, "rtfx": 10.0}


def test_hash_depends_on_content_only(tmp_path: Path) -> None:
    assert reference_hash([("a", "今"), ("b", "天")]) == reference_hash([("b", "天"), ("a", "今")])
    assert reference_hash([("a", "今")]) != reference_hash([("a", "天")]) != reference_hash([("b", "天")])
    one = score_files(write(tmp_path / "r1", a="好，的", b="A"), write(tmp_path / "h", a="", b=""), FORM)
    two = score_files(write(tmp_path / "r2", b="a", a="好的"), tmp_path / "h", FORM)
    assert one["test_set_sha256"] == two["test_set_sha256"]


def test_score_file_has_one_line_per_utterance(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", **{f"u{i}": "今天" for i in range(20)})
    score = score_files(ref, ref, FORM)
    write_score(tmp_path / "score.json", score)
    text = (tmp_path / "score.json").read_text(encoding="utf-8")
    assert json.loads(text) == score
    assert sum('"operations": "CC"' in line for line in text.splitlines()) == 20


def test_groups_come_from_files_of_their_own(tmp_path: Path) -> None:
    ref, hyp = write(tmp_path / "ref", a="今天", b="天气", c="很好"), write(tmp_path / "hyp", a="今天", b="天", c="狠好")
    speakers = write(tmp_path / "utt2spk", a="张", b="张", c="李", other="王")
    domains = tmp_path / "cuts.jsonl"
    domains.write_text("".join(json.dumps({
        "id": id, "custom": {"domain": domain}, "supervisions": [{"start": 0, "speaker": "x"}],
    }) + "\n" for id, domain in (("a", "家"), ("b", "街"), ("c", "家"))))
    score = score_files(ref, hyp, FORM, group_files={"speaker": speakers, "domain": domains})
    assert {name: table["counts"]["N"] for name, table in score["groups"]["speaker"].items()} == {"张": 4, "李": 2}
    assert score["groups"]["domain"]["街"] == {"utterances": 1, "counts": {"N": 2, "S": 0, "D": 1, "I": 0}, "cer": 50.0}
    assert sum(table["counts"]["N"] for table in score["groups"]["domain"].values()) == score["counts"]["N"]


def test_a_group_file_must_tell_of_every_utterance(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", a="今天", b="天气")
    with pytest.raises(DataError, match=r"utt2spk: lacks 1 of 2 ids: b\nits lines must tell the speaker of each"):
        score_files(ref, ref, FORM, group_files={"speaker": write(tmp_path / "utt2spk", a="张")})
    (tmp_path / "utt2spk").write_text("a 张\na 李\nb 李\n")
    with pytest.raises(DataError, match=r"utt2spk:2: id a is doubled"):
        score_files(ref, ref, FORM, group_files={"speaker": tmp_path / "utt2spk"})
    (tmp_path / "rows").write_text('{"id": "a", "domain": "x", "city": "y"}\n{"id": "b", "city": "y"}\n')
    with pytest.raises(DataError, match=r"rows:2: id b has no field `domain`; it has city"):
        score_files(ref, ref, FORM, group_files={"domain": tmp_path / "rows"})
