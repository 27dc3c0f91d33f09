"""Hotwords through the LLM: the same text with a draft and without, and a bonus that is taken back as the CIF search does."""

from __future__ import annotations

import json

import pytest
import torch

from xllm_speech import XLLM
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.bin import main as entry
from xllm_speech.decoders.hotwords import START, HotwordGraph
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.llm_hotwords import HotwordBias, Hotwords, spell
from xllm_speech.infer.transcribing import TranscribingReport

WORDS = ["绿色的旗子", "右下", "请将"]


@pytest.fixture(scope="module")
def model(xllm_dir):
    return XLLM.from_pretrained(xllm_dir)


@pytest.fixture(scope="module")
def llm(model):
    return model.checkpoint.model.llm


@pytest.fixture(scope="module")
def files(media):
    return [media / f"{name}.wav" for name in ("short", "long", "middle")]


def test_a_phrase_is_spelt_as_the_language_model_would_write_it(llm):
    for phrase in [*WORDS, "文字 红色"]:
        found = spell(llm, phrase)
        assert found
        assert len({tuple(ids) for ids in found}) == len(found)
        for ids in found:
            assert "".join(llm.decode(ids).split()) == phrase.replace(" ", "")
            assert llm.decode(ids[:1]).strip()
    assert llm.encode("，右下")[-len(spell(llm, "右下")[0]) :] in spell(llm, "右下")
    assert spell(llm, "鬱") == []  # not in its vocabulary


def test_what_an_unfinished_phrase_earned_is_taken_back():
    bias = HotwordBias(HotwordGraph([[5, 6, 7]], 2.0))
    scores = bias(torch.tensor([[3, 3], [3, 5], [5, 6]]), torch.zeros(3, 9))
    assert scores[0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert scores[1].tolist() == [-2, -2, -2, -2, -2, 0, 2, -2, -2]  # 5 again: one bonus back, one anew
    assert scores[2].tolist() == [-4, -4, -4, -4, -4, -2, -4, 2, -4]
    graph, total, state = bias.graph, 0.0, START
    for token in (5, 6, 5, 6, 7, 5):
        earned, state = graph.step(state, token)
        total += earned
    assert total + graph.finish(state) == 6.0  # the whole phrase alone counts, and the end costs what any other token costs
    assert torch.equal(bias(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 9)), scores[:1])


@pytest.mark.parametrize("beams", [1, 2])
def test_drafted_batches_say_what_transformers_says_with_the_same_bonus(model, llm, files, beams, monkeypatch):
    hotwords, told = Hotwords(WORDS, 6.0), {draft: TranscribingReport() for draft in ("cif", "none")}
    plain = [one.text for one in model.transcribe(files, max_new_tokens=10, num_beams=beams, wording=0, guard=False)]
    found = {
        draft: list(model.stream(
            files, AnswerOptions(10, beams), wording=0, draft=draft, guard=False, told=told[draft], hotwords=hotwords
        )) for draft in told
    }
    texts = [one.text for one in found["cif"]]
    assert texts == [one.text for one in found["none"]] != plain
    assert any(word in text for text in texts for word in WORDS)
    answerer = model.make_recogniser(AnswerOptions(10, beams), wording=0, guard=False, hotwords=hotwords).answerer
    prompts = []
    write = answerer._write
    monkeypatch.setattr(type(answerer), "_write", lambda self, prompt, *rest: prompts.append(prompt) or write(prompt, *rest))
    for path in files:
        model.transcribe(path, max_new_tokens=10, num_beams=beams, wording=0, guard=False)
    bias = hotwords.bias(llm)
    assert texts == [llm.decode(llm.generate(prompt, 10, beams, bias=bias)[0]) for prompt in prompts]
    if beams == 1:
        assert told["cif"].passes <= told["none"].passes
        for one in found["cif"]:  # the model's own probabilities, the bonus not counted
            assert all(token.confidence < 1 for token in one.tokens)


def test_drafts_are_biased_too(model, files):
    plain, hotword = model.make_speech_answerer().listener, Hotwords(["宇宙洪荒"], 9.0)
    biased = model.make_speech_answerer(hotwords=Hotwords(["宇宙洪荒", "右下"], 9.0)).listener
    assert (plain.search.fusion, biased.search.method) == (None, "greedy")
    assert len(biased.search.fusion.hotwords) == 1  # the ASR model's table has no 右
    with pytest.raises(DataError, match="none of 1 phrases can be written by the language model"):
        model.make_speech_answerer(hotwords=hotword)


def test_no_bonus_changes_nothing_and_a_negative_one_is_refused(model, files):
    plain = model.transcribe(files, max_new_tokens=8, wording=0, guard=False)
    nothing = model.transcribe(files, max_new_tokens=8, wording=0, guard=False, hotwords=Hotwords(WORDS, 0.0))
    assert [one.text for one in nothing] == [one.text for one in plain]
    with pytest.raises(ConfigError, match="hotword_bonus -1"):
        Hotwords(WORDS, -1.0)


def test_the_command_takes_a_list(xllm_dir, files, tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("# likely\n绿色的旗子\n鬱\n", encoding="utf-8")
    common = ["transcribe", "--model", str(xllm_dir), "--method", "llm", "--no-guard", "--max-tokens", "8", *map(str, files)]
    out = tmp_path / "out.jsonl"
    assert entry.main([*common, "--hotwords", str(words), "--hotword-bonus", "50", "--out", str(out)]) == 0
    assert all("绿色的旗子" in json.loads(row)["text"] for row in out.read_text().splitlines())
    meta = json.loads((tmp_path / "out.jsonl.meta.json").read_text())
    assert "1 hotwords (" in meta["config"]["hotwords"]
    assert meta["config"]["hotwords"].endswith("x 50")
    told = capsys.readouterr().err
    assert "words.txt:3: hotword `鬱` is left out: the language model has no tokens for it" in told
    assert "drafts go without hotwords" in told
    words.write_text("鬱\n", encoding="utf-8")
    assert entry.main([*common, "--hotwords", str(words)]) != 0
    error = capsys.readouterr().err
    assert "words.txt: none of 1 phrases can be written by the language model" in error
    assert "Traceback" not in error
