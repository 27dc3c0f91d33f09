from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.infer.endpoint import ChatEndpoint, EndpointConfig, EndpointUnusable
from xllm_speech.infer.judge import (
    DEFAULT_RULE,
    JudgeRun,
    Question,
    Rule,
    judge_messages,
    read_questions,
    read_rules,
    run_judge,
)
from xllm_speech.metrics.judged import read_verdicts, summarise

sys.path.insert(0, str(Path(__file__).parent))
from stub_endpoint import Reply, Stub, chat

QUESTIONS = [Question(str(n), f"question {n}?", "conv", f"ours {n}", f"theirs {n}", "a cat") for n in range(4)]
RULES = {"default": DEFAULT_RULE}
Script = Callable[[dict[str, Any], int], Reply]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], Stub]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stubs: list[Stub] = []

    def start(script: Script) -> Stub:
        stubs.append(Stub(script))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.close()


def fair(request: dict[str, Any], number: int = 0) -> Reply:
    """A judge without bias: 6 for ours, 8 for theirs, wherever they stand."""
    text = request["messages"][1]["content"]
    return chat("6 8\nwhy" if text.index("ours") < text.index("theirs") else "8 6\nwhy")


def judge(stub: Stub, out: Path, questions: list[Question] = QUESTIONS, **options: Any) -> JudgeRun:
    config = {"url": stub.url, "model": "judge", "retries": 1, "first_wait_sec": 0.01}
    for key in ("model", "temperature"):
        if key in options:
            config[key] = options.pop(key)
    with ChatEndpoint(EndpointConfig(**config)) as endpoint:  # type: ignore[arg-type]
        return run_judge(questions, endpoint, out, options.pop("rules", RULES), **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_both_orders_are_asked_stored_and_averaged(serve: Callable[[Script], Stub], tmp_path: Path) -> None:
    stub, out = serve(fair), tmp_path / "deep" / "v.jsonl"
    assert judge(stub, out) == JudgeRun(asked=8)
    rows = lines(out)
    assert [(row["question_id"], row["order"]) for row in rows[:3]] == [("0", "given"), ("0", "swapped"), ("1", "given")]
    assert {tuple(row["tuple"]) for row in rows} == {(6.0, 8.0)}
    assert rows[1]["content"] == "8 6\nwhy"
    assert (rows[0]["model"], rows[0]["temperature"], rows[0]["category"]) == ("judge-2", 0.2, "conv")
    summary = summarise(read_verdicts(out))
    assert summary["relative"]["all"] == pytest.approx(75)
    assert set(summary["orders"]) == {"given", "swapped"}
    prompt = stub.requests[1]["messages"][1]["content"]
    parts = ["[Context]\na cat", "[Question]\nquestion 0?", "[Assistant 1]\ntheirs 0", "[End of Assistant 1]",
             "[Assistant 2]\nours 0"]
    assert sorted(parts, key=prompt.index) == parts
    assert json.loads(Path(f"{out}.meta.json").read_text())["settings"]["model"] == "judge"


def test_a_second_run_asks_nothing_and_another_order_only_the_rest(serve: Callable[[Script], Stub], tmp_path: Path) -> None:
    stub, out = serve(fair), tmp_path / "v.jsonl"
    assert judge(stub, out, orders="given") == JudgeRun(asked=4)
    assert judge(stub, out) == JudgeRun(asked=4, kept=4)
    before = out.read_bytes()
    assert judge(stub, out) == JudgeRun(kept=8)
    assert out.read_bytes() == before
    assert len(stub.requests) == 8


def test_verdicts_without_scores_are_asked_again_then_counted(serve: Callable[[Script], Stub], tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def script(request: dict[str, Any], number: int) -> Reply:
        text = request["messages"][1]["content"]
        asked[text] += 1
        if "question 1?" in text:
            return chat("I would rather not.")
        return chat("Hm.") if "question 2?" in text and asked[text] == 1 else fair(request)

    stub, out = serve(script), tmp_path / "v.jsonl"
    assert judge(stub, out, attempts=3) == JudgeRun(asked=6 + 6 + 2, unparsed=2)
    assert [row["attempt"] for row in lines(out) if row["question_id"] == "1"] == [1, 2, 3, 1, 2, 3]
    assert [row["tuple"] for row in lines(out) if row["question_id"] == "2"] == [None, [6, 8], None, [6, 8]]
    summary = summarise(read_verdicts(out))
    assert (summary["unparsed"], summary["unparsed_ids"], summary["verdicts"]) == (2, ["1"], 8)
    assert summary["relative"]["conv"] == pytest.approx(75)
    assert judge(stub, out, attempts=3) == JudgeRun(kept=8, unparsed=2)
    assert judge(stub, out, attempts=4).asked == 2


def test_one_question_without_an_answer_costs_only_itself(serve: Callable[[Script], Stub], tmp_path: Path) -> None:
    ill = [True]

    def script(request: dict[str, Any], number: int) -> Reply:
        if ill[0] and "question 2?" in request["messages"][1]["content"]:
            return Reply(b"too long", 400)
        return fair(request)

    stub, out = serve(script), tmp_path / "v.jsonl"
    run = judge(stub, out)
    assert run.asked == 6
    assert [name for name, _ in run.failed] == ["question 2, order given", "question 2, order swapped"]
    assert "refused with status 400: too long" in run.failed[0][1]
    ill[0] = False
    assert judge(stub, out) == JudgeRun(asked=2, kept=6)


def test_three_failures_in_a_row_end_the_run_and_keep_what_there_is(serve: Callable[[Script], Stub], tmp_path: Path) -> None:
    stub, out = serve(lambda request, number: fair(request) if number <= 2 else Reply(b"down", 500)), tmp_path / "v.jsonl"
    with pytest.raises(EndpointUnusable, match=r"(?s)3 questions in a row.*500: down.*v\.jsonl keeps what was answered"):
        judge(stub, out)
    assert len(stub.requests) == 2 + 3 * 2
    assert len(lines(out)) == 2


def test_a_cut_off_line_is_asked_for_again(
    serve: Callable[[Script], Stub], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub, out = serve(fair), tmp_path / "v.jsonl"
    judge(stub, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-30])
    assert judge(stub, out) == JudgeRun(asked=1, kept=7)
    assert out.read_bytes() == whole
    assert "its last line was cut off" in caplog.text


def test_a_run_with_other_settings_or_a_second_one_is_refused(serve: Callable[[Script], Stub], tmp_path: Path) -> None:
    stub, out = serve(fair), tmp_path / "v.jsonl"
    judge(stub, out)
    before = out.read_bytes()
    other = [*QUESTIONS[:3], Question("3", "question 3?", "conv", "better", "theirs 3")]
    for options, message in (
        ({"model": "other"}, "begun with other settings .model 'judge' then, 'other' now.; choose another --out"),
        ({"temperature": 0.0}, "temperature 0.2 then, 0.0 now"),
        ({"questions": other}, "prompts_sha256"),
        ({"rules": {"default": Rule("Assistant", "Be harsh.")}}, "prompts_sha256"),
        ({"orders": "one"}, "--orders: `one` is not one of both, given"),
        ({"attempts": 0}, "--attempts 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            judge(stub, out, **options)
    import fcntl

    with open(out, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is writing to it"):
            judge(stub, out)
    assert out.read_bytes() == before
    (tmp_path / "authors.jsonl").write_text('{"question_id": 0}\n')
    with pytest.raises(ConfigError, match=r"authors\.jsonl: holds something, but authors\.jsonl\.meta.json is not beside it"):
        judge(stub, tmp_path / "authors.jsonl")
    out.write_text('{"question_id": 0}\n')
    with pytest.raises(DataError, match=r"v\.jsonl:1: not a line of `judge run`"):
        judge(stub, out)


def test_the_authors_files_are_read(shared_data: Path) -> None:
    folder = shared_data / "annotation_samples" / "xllm_eval_llava"
    questions = read_questions(
        folder / "question90.jsonl", folder / "en_qa90_x-llm_answer.json", folder / "qa90_gpt4_answer.jsonl",
        folder / "caps_boxes_coco2014_val_80.jsonl",
    )
    assert len(questions) == 90
    assert Counter(question.category for question in questions) == {"conv": 30, "detail": 30, "complex": 30}
    assert questions[0].model_answer.startswith("The colors of the two hand-held boxes")
    assert "\nsuitcase: [0" in questions[0].context
    rules = read_rules(folder / "rule.json")
    text = judge_messages(questions[2], "given", rules)[1]["content"]
    assert text.endswith(rules["complex"].prompt + "\n")
    chinese = read_questions(
        folder / "question90_zh.json", folder / "qa90_x-llm_answer.json", folder / "qa90_gpt4_answer.jsonl",
        question_field="text_zh",
    )
    assert chinese[0].text == "这张图片中两个手提箱的颜色是什么？"
    assert "[Context]" not in judge_messages(chinese[0], "given", RULES)[1]["content"]


Q = '{"question_id": 0, "image": "a.jpg", "text": "what?", "category": "conv"}\n'
A = '{"question_id": 0, "text": "this"}\n'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"q": Q + Q}, r"q:2: question_id 0 is doubled, first at .*q:1"),
        ({"q": ""}, "no question in it"),
        ({"q": Q.replace("category", "kind")}, r'q:1: question_id 0: expected "category" to be a string, found None'),
        ({"a": ""}, r"a: lacks the answers to 1 of 1 questions: 0"),
        ({"a": A + A.replace("0", "7")}, r"a:2: question_id 7 belongs to no question"),
        ({"b": A.replace('"this"', "3")}, r'b:1: question_id 0: expected "text" to be a string, found 3'),
        ({"c": '{"image": "b.jpg", "captions": []}'}, r"q:1: question 0: its image a\.jpg has no line in .*c"),
        ({"c": '{"image": "a.jpg", "captions": [1]}'}, r'c:1: expected "captions" to be strings'),
    ],
)
def test_a_broken_question_set_is_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in ({"q": Q, "a": A, "b": A, "c": '{"image": "a.jpg", "captions": ["x"]}\n'} | files).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_questions(*(tmp_path / name for name in "qabc"))


def test_rules_must_fit(tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text('{"conv": {"role": "System", "prompt": "judge"}}')
    rules = read_rules(tmp_path / "rule.json")
    assert "[System 1]\nours 0" in judge_messages(QUESTIONS[0], "given", rules)[1]["content"]
    with pytest.raises(ConfigError, match="question 9: no rule for category `video`; known: conv"):
        judge_messages(Question("9", "", "video", "", ""), "given", rules)
    for text, message in (("[]", "expected one JSON object"), ('{"conv": {}}', "rule `conv`: expected an object")):
        (tmp_path / "rule.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_rules(tmp_path / "rule.json")
