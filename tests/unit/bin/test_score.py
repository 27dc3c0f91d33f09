from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.bin import score
from xllm_speech.bin.score import normal_form
from xllm_speech.metrics.score_file import score_files


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    return score.run(parser.parse_args([str(word) for word in words]))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_score_normalises_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = write(tmp_path / "text", "a 今天，天气 很好！\nb 用 Python 写 Hello World\nc １２３ 个\n")
    hyp = write(tmp_path / "hyp.jsonl", "".join(json.dumps(row) + "\n" for row in [
        {"id": "c", "text": "123个"}, {"id": "a", "text": "今天天气很好"}, {"id": "b", "text": "用python写hello word"},
    ]))
    assert call("--ref", ref, "--hyp", hyp, "--out", tmp_path / "score.json", "--mer", "--set-name", "试") == 0
    result = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))
    assert result["counts"] == {"N": 28, "S": 0, "D": 1, "I": 0}
    assert result["mer_counts"] == {"N": 13, "S": 1, "D": 0, "I": 0}
    assert result["cer"] == pytest.approx(100 / 28)
    assert result["normaliser"] == "xllm-zh-1"
    shown = capsys.readouterr().out
    assert "试: 3 utterances" in shown
    assert "3.57" in shown
    assert "7.69" in shown


def test_numbers_are_read_on_request(tmp_path: Path) -> None:
    ref, hyp = write(tmp_path / "ref", "a 百分之五十的人\n"), write(tmp_path / "hyp", "a 50%的人\n")
    call("--ref", ref, "--hyp", hyp, "--out", tmp_path / "plain.json")
    call("--ref", ref, "--hyp", hyp, "--out", tmp_path / "read.json", "--numbers")
    plain, read = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("plain.json", "read.json"))
    assert plain["cer"] > 0 == read["cer"]
    assert read["normaliser"] == "xllm-zh-1+numbers"


@pytest.mark.parametrize(
    ("hyp", "named"),
    [
        ("a 今\n", r"b \(.*ref:2\)"),
        ("a 今\nb 天\nb 天\n", r"hyp:3: id b is doubled"),
        ("a 今\nb 天\nz 好\n", r"z \(.*hyp:3\)"),
        ('{"id": "a", "text": "今"}\n{"id": "b"\n', r"hyp:2: not JSON"),
        ("", "no transcript"),
    ],
)
def test_nothing_is_written_when_ids_do_not_match(hyp: str, named: str, tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", "a 今\nb 天\n")
    with pytest.raises(DataError, match=named):
        call("--ref", ref, "--hyp", write(tmp_path / "hyp", hyp), "--out", tmp_path / "score.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hyp", "ref"]


def test_table_shows_comparison_groups_and_remarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a", "今天天气", "张"), ("b", "", "李"), ("c", "[red]", "李")]
    ref = write(tmp_path / "ref.jsonl", "".join(json.dumps({"id": i, "text": t, "speaker": s}) + "\n" for i, t, s in rows))
    hyp = write(tmp_path / "hyp", "a 今天天气\nb 嗯嗯嗯嗯\nc red\n")
    write(tmp_path / "hyp.meta.json", json.dumps({"audio_sec": 10, "wall_sec": 5, "includes": "features and search"}))
    call("--ref", ref, "--hyp", hyp, "--compare", write(tmp_path / "other", "a 今天\nb\nc red\n"))
    shown = capsys.readouterr().out
    for part in ("speaker 张", "speaker 李", "CER other", "difference", "+28.57", "1 answered, 4 characters",
                 "loops in 33.33 %", "RTFx 2.0 (features and search)"):
        assert part in shown
    write(tmp_path / "empty", "a\n")
    call("--ref", tmp_path / "empty", "--hyp", tmp_path / "empty")
    assert "there is no error rate" in capsys.readouterr().out


def test_real_text_with_known_damage(shared_data: Path, tmp_path: Path) -> None:
    ref = shared_data / "aishell1_sample_S0150" / "kaldi" / "text"
    lines = ref.read_text(encoding="utf-8").splitlines()
    generator = random.Random(4)
    chosen = generator.sample(range(len(lines)), 60)
    for place in chosen:
        id, text = lines[place].split(maxsplit=1)
        lines[place] = f"{id} {text.strip()}龘"
    generator.shuffle(lines)
    call("--ref", ref, "--hyp", write(tmp_path / "hyp", "\n".join(lines)), "--out", tmp_path / "score.json")
    result = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))
    assert (result["counts"]["S"], result["counts"]["D"], result["counts"]["I"]) == (0, 0, 60)
    assert result["ser"] == pytest.approx(100 * 60 / len(lines))


def test_groups_are_read_from_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref, hyp = write(tmp_path / "ref", "a 今天\nb 天气\n"), write(tmp_path / "hyp", "a 今天\nb 天\n")
    speakers = write(tmp_path / "utt2spk", "a 张\nb 李\n")
    call("--ref", ref, "--hyp", hyp, "--by", f"speaker={speakers}", "--by", "group")
    shown = capsys.readouterr().out
    assert "speaker 张" in shown
    assert "speaker 李" in shown


def test_hotwords_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = write(tmp_path / "ref", "a 红的旗子和钟\nb 旗子旗子\nc 没有\n")
    hyp = write(tmp_path / "hyp", "a 红的棋子和钟\nb 旗子齐子\nc 旗子\n")
    better = write(tmp_path / "better", "a 红的旗子和钟\nb 旗子旗子\nc 没有\n")
    words = write(tmp_path / "words", "# likely\n旗子\n\n 钟。\n")
    common = ["--ref", ref, "--hyp", hyp, "--hotwords", words]
    assert call(*common, "--out", tmp_path / "score.json", "--compare", better) == 0
    found = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))["hotwords"]
    assert (found["said"], found["written"], found["right"]) == (4, 3, 2)
    assert (found["recall"], found["precision"], found["f1"]) == (50.0, pytest.approx(200 / 3), pytest.approx(400 / 7))
    assert found["phrases"]["钟。"]["recall"] == 100.0
    assert (found["inside"]["counts"]["S"], found["outside"]["counts"]["S"]) == (2, 2)
    assert (found["compare"]["recall"], found["compare"]["precision"]) == (100.0, 100.0)
    shown = capsys.readouterr().out
    assert "ref: hotwords" in shown
    assert "66.67" in shown
    assert "CER in hotwords 28.57 % of 7 characters; elsewhere 40.00 % of 5 characters" in shown
    with pytest.raises(ConfigError, match="no phrase in it"):
        call("--ref", ref, "--hyp", hyp, "--hotwords", write(tmp_path / "none", "# nothing\n"))
    with pytest.raises(DataError, match="hotword `。` has no token"):
        call("--ref", ref, "--hyp", hyp, "--hotwords", write(tmp_path / "dot", "。\n"))
    with pytest.raises(ConfigError, match="--hotwords: only for"):
        call(*common, "--metrics", "translation")


def test_conditions_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = write(tmp_path / "ref", "a 左边是红色的方块\nb 今天\n")
    speech, image = write(tmp_path / "s", "a 左边是洪色的方块\nb 今天\n"), write(tmp_path / "v", "a 左边是红色的方块\nb 今天\n")
    captions = write(tmp_path / "captions", "a 红色方块\nb\n")
    assert call("--ref", ref, "--conditions", f"S={speech}", f"S+V={image}", "--captions", captions,
                "--out", tmp_path / "conditions.json", "--set-name", "试") == 0
    shown = capsys.readouterr().out
    for part in ("试: 2 utterances, differences to S", "S+V", "-10.00", "grounded", "-25.00", "CER from 0.00 to 10.00"):
        assert part in shown
    table = json.loads((tmp_path / "conditions.json").read_text(encoding="utf-8"))
    assert table["conditions"]["S"]["grounded"]["percent"] == 25.0


def test_captions_and_answers_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "text": ["红色方块", "方块"]}, {"id": "b", "text": "两只狗"}]
    ref = write(tmp_path / "ref", "".join(json.dumps(row) + "\n" for row in rows))
    hyp = write(tmp_path / "hyp", "a 方块。\nb 三只狗\n")
    assert call("--ref", ref, "--hyp", hyp, "--metrics", "answer", "--out", tmp_path / "answers.json") == 0
    assert json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))["scores"]["exact_match"] == 50
    assert "exact_match" in capsys.readouterr().out
    call("--ref", ref, "--hyp", hyp, "--metrics", "caption")
    shown = capsys.readouterr().out
    assert "cider" in shown
    assert "2 items, 3 references" in shown
    call("--ref", hyp, "--hyp", hyp, "--metrics", "translation")
    assert "tok:zh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one of --hyp FILE and --conditions"),
        (["--hyp", "h", "--conditions", "a=h", "b=h"], "expected one of --hyp FILE and --conditions"),
        (["--hyp", "h", "--captions", "c"], "--captions goes with --conditions"),
        (["--conditions", "a=h", "b=h", "--metrics", "answer"], "--conditions compares transcripts, not --metrics answer"),
        (["--conditions", "a=h", "b=h", "--mer"], "--mer: only for --hyp with transcripts"),
        (["--hyp", "h", "--metrics", "caption", "--mer", "--by", "x"], "--by, --mer: only for --hyp"),
        (["--conditions", "a=h", "b=h", "--compare", "o"], "--conditions compares all with the first"),
        (["--answers", "a", "--task", "vl", "--metrics", "answer"], "--answers holds both sides; leave --ref"),
        (["--hyp", "h", "--task", "vl"], "--task goes with --answers"),
        (["--conditions", "a=h", "h"], "--conditions h: expected NAME=FILE"),
        (["--conditions", "a=h", "a=g"], "--conditions a=g: a is already h"),
        (["--hyp", "h", "--by", "=f"], "--by =f: expected NAME=FILE"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_a_reference(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call("--ref", "r", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hyp", "h"], "expected --ref FILE"),
        (["--answers", "a", "--metrics", "answer"], "goes with --task NAME"),
        (["--answers", "a", "--task", "vl"], "and --metrics caption"),
        (["--answers", "a", "--task", "vl", "--metrics", "answer", "--mer"], "--mer: only for --hyp"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(*words)


def test_answers_are_scored_by_task_beside_those_without_a_medium(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(name: str, right: int) -> Path:
        rows = [
            {"id": f"{number}-{task}", "task": task, "text": "红色" if number < right else "没有", "reference": "红色"}
            for number in range(20) for task in ("vl", "vsd")
        ]
        return write(tmp_path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    seeing, blind = answers("all.jsonl", 15), answers("no_image.jsonl", 5)
    out = tmp_path / "vl.json"
    words = ["--answers", seeing, "--task", "vl", "--metrics", "answer", "--compare", blind, "--out", out, "--set-name", "问"]
    assert call(*words) == 0
    shown = capsys.readouterr().out
    for part in ("问: 20 items", "no_image.jsonl", "+50.00"):
        assert part in shown
    score = json.loads(out.read_text(encoding="utf-8"))
    assert (score["task"], score["scores"]["exact_match"], score["compare"]["scores"]["exact_match"]) == ("vl", 75, 25)
    gap = score["compare"]["differences"]["exact_match"]
    low, high = gap["interval"]
    assert 20 < low < 50 < high < 80
    assert gap["p"] < 0.01
    with pytest.raises(DataError, match="holds no answer to task `caption`; it has vl, vsd"):
        call("--answers", seeing, "--task", "caption", "--metrics", "caption")
    write(seeing, '{"id": "a", "task": "vl", "text": "x"}\n')
    with pytest.raises(DataError, match=r"all.jsonl:1: needs `id`, `reference` and `text`"):
        call("--answers", seeing, "--task", "vl", "--metrics", "answer")


# N, and what sclite 2.4.10 counts as S, D and I, over the characters of both sides in normal form.
@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("ＡＢＣ１２３，你好。", "abc123你好", (8, 0, 0, 0)),
        ("我用WiFi上网", "我用 wi-fi 上网！", (8, 0, 0, 0)),
        ("今天２５度", "今天25 度", (5, 0, 0, 0)),
        ("今天25度", "今天二十五度", (5, 2, 0, 1)),
        ("。，！？", "……", (0, 0, 0, 0)),
        ("。，！？", "嗯", (0, 0, 0, 1)),
        ("你好", "", (2, 0, 2, 0)),
        ("你好", " 　\u200b", (2, 0, 2, 0)),
        ("don’t stop", "DON'T STOP", (9, 0, 0, 0)),
        ("百分之3.5", "百分之3。5", (6, 0, 1, 0)),
        ("你<unk>好", "你好", (3, 0, 1, 0)),
        ("天上", "上天", (2, 0, 1, 1)),
        ("ﾃｽﾄ", "テスト", (3, 0, 0, 0)),
        ("重复重复", "重复重复重复重复", (4, 0, 0, 4)),
    ],
)
def test_pairs_that_differ_in_writing_score_as_sclite_counts_their_normal_form(
    reference: str, hypothesis: str, counts: tuple[int, int, int, int], tmp_path: Path
) -> None:
    ref, hyp = tmp_path / "ref", tmp_path / "hyp"
    ref.write_text(f"u1 {reference}\n", encoding="utf-8")
    hyp.write_text(f"u1 {hypothesis}\n", encoding="utf-8")
    found = score_files(ref, hyp, normal_form(False))["counts"]
    assert tuple(found.values()) == counts
