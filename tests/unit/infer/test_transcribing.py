"""Transcripts of a tiny X-LLM: the same with a draft and without, in any company; silence, loops and inventions are caught."""

from __future__ import annotations

import importlib.util
import json
import re

import numpy as np
import pytest
import soundfile
import torch

from xllm_speech import XLLM
from xllm_speech.base.errors import ConfigError, MissingDependency
from xllm_speech.bin import main as entry
from xllm_speech.features.audio import load_file
from xllm_speech.infer import transcribing, voice
from xllm_speech.infer.asr import CifAsr
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.guard import GuardConfig
from xllm_speech.infer.transcribing import TranscribingReport
from xllm_speech.llm import LoadedLlm
from xllm_speech.manifests.cuts import save_cuts
from xllm_speech.models.asr import SearchConfig

# A chance model hears nothing sensible: bounds under which all of its transcripts but the loudest nonsense pass.
OPEN = GuardConfig(heard_per_unit=0.0, shortest=0.0, longest=99.0, furthest=1.0, slack=99)


@pytest.fixture(scope="module")
def model(xllm_dir):
    return XLLM.from_pretrained(xllm_dir)


@pytest.fixture(scope="module")
def heard(model_dir, mixed_cuts):
    """What the CIF model by itself makes of them."""
    return CifAsr.from_pretrained(model_dir).transcribe(mixed_cuts, SearchConfig("fast"), use_images=False)


def texts(hypotheses):
    return [hypothesis.text for hypothesis in hypotheses]


@pytest.mark.parametrize("wording", [None, 0])
def test_a_draft_changes_the_passes_and_nothing_else(model, mixed_cuts, wording):
    told = {draft: TranscribingReport() for draft in ("cif", "none")}
    found = {
        draft: list(model.stream(mixed_cuts, AnswerOptions(12), wording=wording, draft=draft, guard=False, told=told[draft]))
        for draft in told
    }
    assert texts(found["cif"]) == texts(found["none"])
    assert len(set(texts(found["cif"]))) > 4
    for ours, plain in zip(found["cif"], found["none"], strict=True):
        assert [token.text for token in ours.tokens] == [token.text for token in plain.tokens]
        assert ours.score == pytest.approx(plain.score, abs=1e-3)
        assert not ours.extra
    assert told["none"].passes == told["none"].tokens
    assert told["none"].describe()["acceptance_rate"] is None
    assert told["cif"].passes <= told["none"].passes
    assert told["cif"].asked == 16
    assert told["cif"].offered > 0


def test_what_the_cif_model_heard_is_what_is_drafted(model, mixed_cuts, heard, monkeypatch):
    drafted = []

    class Recorder(transcribing.Drafter):
        def __init__(self, llm, expected):
            drafted.extend(expected)
            super().__init__(llm, expected)

    monkeypatch.setattr(transcribing, "Drafter", Recorder)
    model.transcribe(mixed_cuts, max_new_tokens=4, guard=False, batch_sec=10.0)
    assert sorted(drafted) == sorted(texts(heard))


def test_times_lie_in_the_recording(model, media, mixed_cuts):
    part = load_file(media / "long.wav").truncate(offset=0.5, duration=1.0, preserve_id=True)
    cuts = [part, *mixed_cuts]
    for cut, found in zip(cuts, model.transcribe(cuts, max_new_tokens=12, guard=False), strict=True):
        assert "".join(token.text for token in found.tokens) == "".join(found.text.split())
        edges = [edge for token in found.tokens for edge in (token.start_sec, token.end_sec)]
        assert edges == sorted(edges)
        assert all(cut.start <= edge <= round(cut.start + cut.duration, 3) for edge in edges)
        assert all(0 <= token.confidence <= 1 for token in found.tokens)


def write(folder, name, samples):
    soundfile.write(folder / f"{name}.wav", samples, 16000, subtype="PCM_16")
    return folder / f"{name}.wav"


def test_silence_gives_no_text_and_asks_no_llm(model, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    quiet = [
        write(tmp_path, "zeros", np.zeros(100 * 16000)),  # far too long for the prompt, which is no reason for an error
        write(tmp_path, "digit", rng.integers(-1, 2, 32000) / 32768), write(tmp_path, "click", np.eye(1, 32000, 900)[0] * 1e-3),
    ]
    monkeypatch.setattr(model.checkpoint.model.llm.model, "forward", lambda **_: pytest.fail("the LLM was asked"))
    told = TranscribingReport()
    for found in model.stream(quiet, AnswerOptions(8), told=told):
        assert (found.text, found.tokens, found.error) == ("", [], None)
        assert found.extra["guard"]["decision"] == "empty"
    assert told.describe()["guard"] == {"empty": 3}
    assert told.describe()["llm_passes_per_utterance"] is None


def test_silence_costs_its_neighbours_nothing(model, mixed_cuts, tmp_path):
    expected = model.transcribe(mixed_cuts[:3], max_new_tokens=8, guard=OPEN)
    zeros = write(tmp_path, "zeros", np.zeros(16000))
    found = model.transcribe(
        [mixed_cuts[0], zeros, *mixed_cuts[1:3]], max_new_tokens=8, guard=OPEN, batch_sec=1000.0
    )
    assert found[1].text == ""
    assert [found[0], *found[2:]] == expected


def test_an_invention_gives_way_to_what_was_heard(model, mixed_cuts, heard):
    free = model.transcribe(mixed_cuts, max_new_tokens=12, guard=False)
    bounds = GuardConfig(heard_per_unit=0.0, shortest=0.0, longest=99.0, slack=99, furthest=0.01)
    guarded = model.transcribe(mixed_cuts, max_new_tokens=12, guard=bounds)
    assert sum(found.extra["guard"]["decision"] == "cif" for found in guarded) > 8
    for plain, found, ours in zip(free, guarded, heard, strict=True):
        record = found.extra["guard"]
        assert record["decision"] in ("cif", "empty")
        if record["decision"] == "cif":
            assert record["llm_text"] == plain.text != found.text
            assert (found.text, found.score) == (ours.text, None)
            assert [(token.text, token.confidence) for token in found.tokens] == [
                (token.text, token.confidence) for token in ours.tokens
            ]


@pytest.fixture
def doubting(model):
    """The model while its CTC head hears blank everywhere."""
    head = model.checkpoint.encoders.asr.ctc_head
    kept = head.bias.detach().clone()
    with torch.no_grad():
        head.bias[0] = 50.0
        yield model
        head.bias.copy_(kept)


def test_noise_can_be_told_by_ctc(doubting, tmp_path, monkeypatch):
    def refuse():
        raise MissingDependency("silero-vad")

    monkeypatch.setattr(voice, "load_vad", refuse)
    path = write(tmp_path, "noise", 0.1 * np.random.default_rng(1).standard_normal(48000))
    (found,) = doubting.transcribe(path)
    assert (found.text, found.error) == ("", None)
    assert re.search("CTC hears less", found.extra["guard"]["reason"])


@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="the optional package silero-vad is not installed")
def test_in_doubt_voice_activity_decides(doubting, tmp_path, shared_data):
    speech = next((shared_data / "aishell1_sample_S0150" / "wav" / "S0150").glob("*.wav"))
    path = write(tmp_path, "noise", 0.1 * np.random.default_rng(1).standard_normal(48000))
    noise, said = doubting.transcribe([path, speech], max_new_tokens=8)
    assert (noise.text, noise.extra["guard"]["reason"]) == ("", "voice activity hears nobody")
    assert said.extra["guard"]["decision"] != "empty"


def test_the_command_writes_times_and_tells_what_it_did(xllm_dir, mixed_cuts, tmp_path, capsys):
    cuts = tmp_path / "cuts.jsonl.gz"
    save_cuts(mixed_cuts[:5], cuts)
    common = ["transcribe", "--model", str(xllm_dir), "--method", "llm", "--cuts", str(cuts), "--max-tokens", "10"]
    for draft in ("cif", "none"):
        assert entry.main([*common, "--draft", draft, "--out", str(tmp_path / f"{draft}.jsonl")]) == 0
    rows = {draft: (tmp_path / f"{draft}.jsonl").read_text().splitlines() for draft in ("cif", "none")}
    assert [json.loads(row)["text"] for row in rows["cif"]] == [json.loads(row)["text"] for row in rows["none"]]
    assert {json.loads(row)["extra"]["guard"]["decision"] for row in rows["cif"]} <= {"kept", "cif", "empty"}
    meta = json.loads((tmp_path / "cif.jsonl.meta.json").read_text())
    assert (meta["config"]["draft"], meta["config"]["guard"]) == ("cif", True)
    assert sum(meta["guard"].values()) == 5
    assert entry.main([*common, "--no-guard", "--out", str(tmp_path / "free.jsonl")]) == 0
    rows = [json.loads(row) for row in (tmp_path / "free.jsonl").read_text().splitlines()]
    assert not any("extra" in row for row in rows)
    meta = json.loads((tmp_path / "free.jsonl.meta.json").read_text())
    assert meta["llm_passes_per_utterance"] >= 1
    assert (meta["config"]["guard"], meta["guard"]) == (False, {})
    for form in ("ctm", "srt", "textgrid"):
        assert entry.main([*common, "--no-guard", "--format", form, "--out", str(tmp_path / form)]) == 0
    lines = (tmp_path / "ctm").read_text().splitlines()
    assert len(lines) == sum(len(row["tokens"]) for row in rows) > 0
    assert len(list((tmp_path / "srt").glob("*.srt"))) == len(list((tmp_path / "textgrid").glob("*.TextGrid"))) == 5
    capsys.readouterr()
    assert entry.main([*common, "--draft", "cif", "--beam", "2"]) != 0
    assert "--draft is for greedy search" in capsys.readouterr().err
    assert entry.main(["transcribe", "--model", str(xllm_dir), "--cuts", str(cuts), "--draft", "cif"]) != 0
    assert "--draft is for --method llm" in capsys.readouterr().err


def test_an_unknown_draft_is_refused(model):
    with pytest.raises(ConfigError, match="draft"):
        model.transcribe([], draft="best")


def test_the_bench_compares_both_ways_with_the_reference(xllm_dir, mixed_cuts, tmp_path, capsys, monkeypatch):
    cuts = tmp_path / "cuts.jsonl.gz"
    save_cuts(mixed_cuts[:6], cuts)
    common = ["bench", "decode", "--model", str(xllm_dir), "--cuts", str(cuts), "--max-tokens", "8", "--threads", "1", "--json"]
    assert entry.main(common) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["utterances"], result["identical"], result["differing"], result["failed"]) == (6, 6, [], [])
    assert 1 <= result["llm_passes_per_utterance"] <= result["plain_passes_per_utterance"] <= 8
    assert result["wall_ratio"] == pytest.approx(result["plain_sec"] / result["drafted_sec"])
    assert entry.main([*common, "--batch", "4", "--limit", "5", "--no-images"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["utterances"], result["identical"], result["batch"]) == (5, 5, 4)
    # a search that answers otherwise is found out
    monkeypatch.setattr(LoadedLlm, "generate", lambda self, prompt, *_, **__: [[5]] * len(prompt.ids_BL))
    assert entry.main(common) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["identical"] < 6
    assert len(result["differing"]) == 6 - result["identical"]
    assert entry.main([*common, "--batch", "0"]) != 0
    assert "--batch 0" in capsys.readouterr().err
