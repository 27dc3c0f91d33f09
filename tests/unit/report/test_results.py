"""Tables: figures are those of the files, differences are paired, the paper stands below; Markdown says the same."""

from __future__ import annotations

import json
import shutil

import pytest

from xllm_speech.base.files import write_json, write_jsonl
from xllm_speech.infer.phase_tree import Link
from xllm_speech.report import costs, results
from xllm_speech.report.gather import gather
from xllm_speech.report.tables import Table, as_markdown


def row_of(table, name):
    (row,) = [row for row in table.rows if row.cells[0].text == name and not row.group]
    return row.cells[1:]


def test_recognition_beside_the_paper(exp):
    table = results.recognition(gather(exp))
    assert table.columns == ["test set", "CIF model S", "CIF model S+V", "X-LLM S", "X-LLM S+V"]
    cells = row_of(table, "one")
    scored = [json.loads((exp / "score" / "test_one" / f"{name}.json").read_text()) for name in ("S", "S+V", "llm_S")]
    assert [cell.text for cell in cells] == [f"{score['cer']:.2f}" for score in scored] + ["–"]
    low, high = scored[0]["interval"]
    assert cells[0].small == f"{low:.2f} to\u00a0{high:.2f}"
    assert [cell.mark for cell in cells] == ["", "best", "", ""]
    assert [cell.text for cell in row_of(table, "test-orig")] == ["2.8", "1.7", "3.4", "4.7 / 4.3"]
    assert [cell.text for cell in row_of(table, "test-ios")] == ["6.0", "–", "8.7", "–"]


def test_differences_are_of_the_same_utterances(exp):
    experiment = gather(exp)
    table = results.differences(experiment)
    assert table.columns == ["test set", "CIF model: S+V minus S", "S: X-LLM minus CIF model"]
    order = {(score.model, score.condition): score for score in experiment.scores}
    plain, seen = order["cif_asr", "S"], order["cif_asr", "S+V"]
    expected = 100 * (sum(row.errors for row in seen.utterances) - sum(row.errors for row in plain.utterances))
    assert row_of(table, "one")[0].text == f"{expected / sum(row.length for row in plain.utterances):+.2f}"


def test_other_test_sets_are_not_compared(exp):
    path = exp / "score" / "test_one" / "S+V.json"
    score = json.loads(path.read_text())
    write_json(path, score | {"test_set_sha256": "another"})
    assert results.differences(gather(exp)).columns == ["test set", "S: X-LLM minus CIF model"]


def test_a_figure_of_metrics_json_that_is_stale_is_named(exp):
    metrics = json.loads((exp / "report" / "metrics.json").read_text())
    metrics["cif_asr"]["one"]["S"] = 9.9
    metrics["cif_asr"]["two"] = {"S": 3.3}
    metrics["translation"] = {"bleu": 21.5}
    write_json(exp / "report" / "metrics.json", metrics)
    experiment = gather(exp)
    table = results.recognition(experiment)
    (problem,) = experiment.problems
    assert problem[0].endswith("score/test_one/S.json")
    assert "but metrics.json says 9.900; the score file is shown" in problem[1]
    assert [cell.text for cell in row_of(table, "two")] == ["3.30", "–", "–", "–"]
    assert not [row for row in table.rows if row.cells[0].text == "all together"]  # no model was scored on both
    assert row_of(results.further(experiment), "translation / bleu")[0].text == "21.50"


def test_questions_beside_blind_ones(exp):
    table = results.questions(gather(exp))
    assert table.columns == ["test", "X-LLM", "no image"]
    assert [cell.text for cell in row_of(table, "image: typed question, right %")] == ["64.0", "25.0"]


def test_judged_beside_table_1(exp):
    rows = [
        {"question_id": number, "category": category, "content": "", "tuple": [model, 10]}
        for number, (category, model) in enumerate([("conv", 9), ("conv", 7), ("detail", 5)])
    ]
    write_jsonl(exp / "judge" / "verdicts.jsonl", rows)
    table = results.judged(gather(exp).judged[0])
    ours = table.rows[0].cells[1:]
    assert dict(zip(table.columns[1:], [cell.text for cell in ours], strict=True)) == {
        "conversation": "80.0", "detail": "50.0", "reasoning": "–", "all": "70.0",
    }
    assert [cell.text for cell in row_of(table, "X-LLM")] == ["85.4", "83.5", "84.6", "84.5"]


def test_costs(exp):
    experiment = gather(exp)
    cells = row_of(costs.phases(experiment), "asr/final (CIF ASR: speech)")
    assert [cell.text for cell in cells] == ["77", "0", "30", "0.2", "0.5"]
    stages = [[cell.text for cell in row.cells] for row in costs.stages(experiment).rows]
    assert stages == [
        ["0", "make the corpus", "0.50"], ["11", "train", "2.25"], ["40", "answer", "not run"], ["", "all", "2.75"],
    ]
    environment = {row.cells[0].text: row.cells[1].text for row in costs.environment(experiment).rows}
    assert environment["command of asr"] == "xllm-speech train"
    assert environment["torch"].startswith("2.0 (asr); ")
    assert environment["seed"] == "7"


def test_a_parent_that_changed_is_marked(exp):
    experiment = gather(exp)
    experiment.nodes[0].parents.append(Link("vision", "vision", "1" * 64, "2" * 64))
    experiment.nodes[0].parents.append(Link("llm", "lm", "1" * 64, ""))
    cells = [row.cells[-1] for row in costs.tree(experiment).rows if not row.group]
    assert [(cell.text, cell.mark) for cell in cells] == [("", ""), ("changed", "bad"), ("missing", "bad")]
    assert cells[1].small == "is 222222222222 now"


def test_markdown_holds_the_same_figures(exp):
    experiment = gather(exp)
    text = as_markdown(results.result_tables(experiment), "Results of tiny")
    lines = text.splitlines()
    assert lines[0] == "# Results of tiny"
    assert "| test set | CIF model S | CIF model S+V | X-LLM S | X-LLM S+V |" in lines
    (row,) = [line for line in lines if line.startswith("| one | ") and "**" in line and "to" in line and "+" not in line]
    cells = row_of(results.recognition(experiment), "one")
    expected = [f"{cell.text} ({cell.small})" if cell.small else cell.text for cell in cells]
    expected[1] = expected[1].replace(cells[1].text, f"**{cells[1].text}**", 1)
    assert row.strip("| ").split(" | ")[1:] == [cell.replace("\u00a0", " ") for cell in expected]


@pytest.mark.parametrize("text", ["a|b", "a\nb"])
def test_markdown_cells_stay_cells(text):
    table = Table("t", ["x"])
    table.add(text)
    assert as_markdown([table], "h").splitlines()[-1].replace("\\|", "").count("|") == 2


def test_verdicts_of_the_authors_under_each_policy(shared_data, exp):
    """The first verdict file of evaluation.md's table, under its three policies."""
    source = shared_data / "annotation_samples" / "xllm_eval_llava" / "review.jsonl"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    (exp / "judge").mkdir()
    shutil.copy(source, exp / "judge" / "review.jsonl")
    table = results.judged(gather(exp).judged[0])
    rows = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in table.rows}
    assert rows[str(exp / "judge" / "review.jsonl")] == ["79.2", "82.2", "84.6", "82.0"]
    assert rows["failures as (-1, -1)"] == ["85.4", "83.5", "84.6", "84.5"] == rows["X-LLM"]
    assert rows["failures as (1, 9)"] == ["70.7", "81.1", "84.6", "78.8"]


def side_by_side(names, **more):
    gap = {"points": -2.5, "interval": [-4.0, -1.0], "p": 0.002}
    return {
        "baseline": names[0], "beside": None, "set": "test_one", "utterances": 12, "same_text": 50.0, **more,
        "conditions": {
            name: {
                "cer": 5.0 - place, "interval": [4.0, 6.0], "difference": gap if place else None, "beside": gap,
                "grounded": {"percent": 1.0}, "other": {"percent": 2.0},
            }
            for place, name in enumerate(names)
        },
    }


def test_conditions_and_wordings_side_by_side(exp):
    about = {"method": "llm", "notes": ["captions are new to it"], "left_out": {"S+L": "no captions", "S+V+L": "no captions"}}
    document = side_by_side(["S", "S+wrong"], beside="S+V", titles={"S+wrong": "another's image"}, **about)
    write_json(exp / "conditions" / "conditions.json", document)
    write_json(exp / "conditions" / "wordings.json", {"wordings": {"S": side_by_side(["请识别", "请转写"])}, "method": "llm"})
    experiment = gather(exp)
    assert experiment.problems == []
    six, worded = map(results.conditions, experiment.conditions)
    assert six.title == "X-LLM: one, conditions side by side, CER %"
    assert six.columns == ["condition", "CER", "minus S", "minus S+V", "in the caption", "not in it"]
    assert six.rows[1].cells[0].small == "another's image"
    assert [cell.text for cell in row_of(six, "S+wrong")] == ["4.00", "-2.50", "-2.50", "1.00", "2.00"]
    assert [cell.mark for cell in row_of(six, "S+wrong")][1] == "best"
    assert row_of(six, "S")[1].text == "–"
    assert "Left out: S+L, S+V+L; no captions." in six.note
    assert "captions are new to it." in six.note
    assert worded.title == "X-LLM: one, S under every wording of the instruction, CER %"
    assert worded.columns[:3] == ["wording", "CER", "minus the first"]
    assert "From the best to the worst wording: 1.00 points." in worded.note
    write_json(exp / "conditions" / "wordings.json", {"wordings": {"S": {"conditions": 3}}})
    assert [path.rpartition("/")[2] for path, _ in gather(exp).problems] == ["wordings.json"]


def test_answers_have_intervals_and_are_held_against_those_without_a_medium(exp):
    metrics = json.loads((exp / "report" / "metrics.json").read_text())
    write_json(exp / "report" / "metrics.json", metrics | {"intervals": {"image": {"question_accuracy": [58.0, 70.0]}}})
    gap = {"exact_match": {"points": 30.0, "interval": [20.0, 40.0], "p": 0.001}}
    write_json(exp / "score" / "vl.json", {
        "metrics": "answer", "set": "typed question", "items": 800, "scores": {"exact_match": 64.0}, "per_item": [],
        "interval": {"exact_match": [60.0, 68.0]},
        "compare": {"hypothesis": "exp/answers/no_image.jsonl", "scores": {"exact_match": 34.0}, "differences": gap},
    })
    experiment = gather(exp)
    assert experiment.problems == []
    (cell, *_) = row_of(results.questions(experiment), "image: typed question, right %")
    assert (cell.text, cell.small) == ("64.0", "58.0 to\u00a070.0")
    (table,) = results.texts(experiment)
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["typed question", "800", "64.0"], ["typed question, no image", "", "34.0"], ["difference", "", "+30.00"],
    ]
    assert table in results.result_tables(experiment)
    assert results.further(experiment) is None
