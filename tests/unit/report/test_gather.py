"""What is read of an experiment folder, and that a file with a fault is named and costs only itself."""

from __future__ import annotations

import json

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import sha256_file, write_json, write_jsonl
from xllm_speech.report.experiment import Gap
from xllm_speech.report.gather import gather


def test_a_whole_experiment(exp):
    found = gather(exp)
    assert found.name == "tiny_recipe"
    assert found.problems == []
    assert {(score.model, score.set, score.condition) for score in found.scores} == {
        ("cif_asr", "one", "S"), ("cif_asr", "one", "S+V"), ("llm_asr", "one", "S"),
    }
    assert all(score.rtfx == 5.0 and len(score.utterances) == 12 for score in found.scores)
    (training,) = found.trainings
    assert (training.path, training.task, training.finished) == ("asr", "asr", True)
    assert (len(training.train), len(training.dev)) == (3, 1)
    assert [(answers.without, len(answers.rows)) for answers in found.answers] == [((), 48), (("image",), 24)]
    assert [(stage.number, stage.minutes) for stage in found.stages] == [(0, 0.5), (11, 2.25), (40, None)]
    assert found.metrics["image", "question_accuracy"] == 64.0
    assert [node.path for node in found.nodes] == ["asr/final"]


def test_files_with_faults_cost_only_themselves(exp):
    scores = exp / "score" / "test_one"
    (scores / "S.json").write_text('{"cer": 1.0, "counts"')
    whole = json.loads((scores / "S+V.json").read_text())
    write_json(scores / "llm_S.json", whole | {"counts": {"N": "many"}})
    write_json(scores / "old.json", {"cer": 3.0})
    write_json(scores / "again.json", whole)
    with open(exp / "asr" / "train.log", "a") as stream:
        stream.write('{"kind": "train", "st')
    (exp / "answers" / "no_image.jsonl").write_text('{"id": 3, "text": "a"}\n')
    (exp / "report" / "metrics.json").write_text('{"cif_asr": {"one": {"S": true}}}')
    (exp / "minutes.tsv").write_text("stage\ttitle\tminutes\n11\t2.25\n")
    found = gather(exp)
    named = {path.removeprefix(f"{exp}/"): what for path, what in found.problems}
    assert set(named) == {
        "score/test_one/S.json", "score/test_one/llm_S.json", "score/test_one/old.json", "score/test_one/again.json",
        "asr/train.log", "asr/final", "answers/no_image.jsonl", "report/metrics.json", "minutes.tsv",
    }
    assert "not JSON" in named["score/test_one/S.json"]
    assert "not in a form that is known" in named["score/test_one/llm_S.json"]
    assert "xllm-speech score --out" in named["score/test_one/old.json"]
    assert "is shown" in named["score/test_one/again.json"]
    assert named["asr/train.log"].startswith("line 5: not JSON")
    assert "the rows before it are shown" in named["asr/train.log"]
    assert "xllm-speech answer" in named["answers/no_image.jsonl"]
    assert "expected a number, found True" in named["report/metrics.json"]
    assert "expected stage, title and minutes, found `11\t2.25`" in named["minutes.tsv"]
    assert [(score.model, score.condition) for score in found.scores] == [("cif_asr", "S+V")]
    assert len(found.trainings[0].train) == 3


def test_verdicts_and_conditions_are_known_by_their_content(exp):
    verdicts = [{"question_id": 1, "category": "conv", "content": "8 9", "tuple": [8, 9]}]
    write_jsonl(exp / "judge" / "mine.jsonl", verdicts)
    write_json(exp / "judge" / "array.json", verdicts)
    row = {"cer": 4.0, "interval": [3, 5], "difference": {"points": -1.0, "interval": [-2, 0], "p": 0.04}}
    write_json(exp / "score" / "six.json", {"set": "one", "baseline": "S", "conditions": {"S": {"cer": 5.0}, "S+V": row}})
    found = gather(exp)
    assert found.problems == []
    assert [judged.summaries["reparse"]["relative"]["all"] for judged in found.judged] == [pytest.approx(800 / 9)] * 2
    rows = [(row.name, row.difference) for row in found.conditions[0].rows]
    assert rows == [("S", None), ("S+V", Gap(-1.0, (-2.0, 0.0), 0.04))]


def test_a_folder_that_holds_nothing(tmp_path):
    with pytest.raises(DataError, match="holds no training, score or model; give an experiment's folder, such as exp"):
        gather(tmp_path)
    with pytest.raises(DataError, match="no such folder; give the folder with trainings and scores"):
        gather(tmp_path / "absent")


def test_scores_alone_are_an_experiment(exp, tmp_path):
    (tmp_path / "other").mkdir()
    (exp / "score").rename(tmp_path / "other" / "score")
    found = gather(tmp_path / "other")
    assert found.name == "other"
    assert len(found.scores) == 3
    assert found.nodes == []


def test_a_training_of_another_toolkit(exp):
    write_json(exp / "asr" / "header.json", {"settings": ["lr"]})
    rows = [{"kind": "train", "step": 10, "loss": 3.5}, {"kind": "train", "step": 20, "loss": "low"}]
    write_jsonl(exp / "asr" / "train.log", rows)
    write_jsonl(exp / "other" / "train.log", [{"kind": "train", "epoch": 1}])
    found = gather(exp)
    named = {path.removeprefix(f"{exp}/"): what for path, what in found.problems}
    assert named["asr/header.json"] == "`settings` are not those of a training"
    assert "expected a number, found 'low'" in named["asr/train.log"]
    assert "line 1: a row without a step" in named["other/train.log"]
    assert {training.path: len(training.train) for training in found.trainings} == {"asr": 1, "other": 0}


def test_models_that_cannot_be_told_cost_only_themselves(exp):
    write_jsonl(exp / "asr" / "train.log", [{"kind": "train", "step": 10}, {"kind": "train", "loss": 1.0}])
    found = gather(exp)
    assert len(found.scores) == 3
    assert any("cannot be told" in what or "without a step" in what for _, what in found.problems)


def test_scores_of_weights_that_were_replaced_are_told(exp):
    path = exp / "score" / "test_one" / "S.json"
    score = json.loads(path.read_text())
    weights = exp / "asr" / "final" / "model.safetensors"
    for sha256, expected in ((sha256_file(weights), []), ("a" * 64, [str(path)])):
        write_json(path, score | {"decoding": score["decoding"] | {"model": "exp/asr/final", "checkpoint_sha256": sha256}})
        found = gather(exp)
        assert [name for name, _ in found.problems] == expected
    assert "exp/asr/final as it was (aaaaaaaaaaaa), which is " in found.problems[0][1]
    assert len(found.scores) == 3  # and shown all the same
