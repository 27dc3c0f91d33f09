"""Recognition from real and broken files, cuts, Kaldi directories and a pipe; through Python and the command line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from xllm_speech import CifAsr
from xllm_speech.base.errors import MissingDependency
from xllm_speech.bin import main
from xllm_speech.infer import voice
from xllm_speech.infer.asr import DecodingReport
from xllm_speech.models.asr import SearchConfig


@pytest.fixture(scope="module")
def recordings(shared_data):
    """One file of each kind: 16 kHz wav, 22 kHz mp3, 8 kHz flac."""
    return [
        next((shared_data / "aishell1_sample_S0150" / "wav" / "S0150").glob("*.wav")),
        next((shared_data / "audio_cmn_1500words" / "mp3").glob("*.mp3")),
        next((shared_data / "fsdd_3spk" / "recordings").glob("*.flac")),
    ]


def make_noise(path, seconds, rate=16000, channels=1):
    generator = np.random.default_rng(0)
    soundfile.write(path, 0.1 * generator.standard_normal((int(seconds * rate), channels)), rate)
    return path


def cli(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "xllm_speech.bin.main", *map(str, arguments)], capture_output=True, timeout=120, **more
    )


def test_real_recordings_give_text_with_times_inside_the_audio(model_dir, recordings):
    hypotheses = CifAsr.from_pretrained(model_dir).transcribe(recordings)
    assert [h.id for h in hypotheses] == [path.stem for path in recordings]
    for hypothesis, path in zip(hypotheses, recordings, strict=True):
        assert hypothesis.error is None
        assert hypothesis.duration_sec == pytest.approx(soundfile.info(path).duration, abs=0.06)
        ends = [token.end_sec for token in hypothesis.tokens]
        starts = [token.start_sec for token in hypothesis.tokens]
        assert hypothesis.text
        assert "".join(token.text for token in hypothesis.tokens) == hypothesis.text
        assert starts[0] >= 0
        assert starts[1:] == ends[:-1]
        assert ends == sorted(ends)
        assert ends[-1] <= hypothesis.duration_sec + 1e-3


def test_results_do_not_depend_on_batches_or_on_their_order(model_dir, tmp_path):
    paths = [make_noise(tmp_path / f"{i}.wav", 0.3 + 0.35 * i) for i in range(9)]
    model = CifAsr.from_pretrained(model_dir)
    for search in (SearchConfig("greedy"), SearchConfig("beam", beam=3), SearchConfig("fast")):
        alone = [model.transcribe(path, search)[0] for path in paths]
        assert len({h.text for h in alone}) > 3
        for batch_sec in (0.1, 4.0, 1000.0):
            assert [h.text for h in model.transcribe(paths, search, batch_sec=batch_sec)] == [h.text for h in alone]
        assert [h.id for h in model.transcribe(paths[::-1], search)] == [path.stem for path in paths[::-1]]


def test_a_cut_with_an_offset_has_times_of_its_recording(model_dir, tmp_path):
    from xllm_speech.features.audio import load_file

    cut = load_file(make_noise(tmp_path / "long.wav", 5.0))
    part = cut.truncate(offset=2.0, duration=2.0, preserve_id=True)
    hypothesis = CifAsr.from_pretrained(model_dir).transcribe(CutSet([part]))[0]
    assert hypothesis.start_sec == 2.0
    assert hypothesis.tokens[0].start_sec == 2.0
    assert 3.0 < hypothesis.tokens[-1].end_sec <= 4.0


def test_tokens_lie_where_it_is_loud_by_every_search(model_dir, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(32000)
    soundfile.write(tmp_path / "a.wav", np.concatenate([np.zeros(12800), noise, np.zeros(6400)]), 16000)
    model = CifAsr.from_pretrained(model_dir)
    for method in ("greedy", "beam", "fast", "ctc"):
        (hypothesis,) = model.transcribe(tmp_path / "a.wav", SearchConfig(method))
        assert hypothesis.tokens[0].start_sec == pytest.approx(0.8, abs=0.03)
        assert hypothesis.tokens[-1].end_sec == pytest.approx(2.8, abs=0.03)


@pytest.fixture
def doubting(model_dir):
    """A model whose CTC head takes next to nothing for speech."""
    model = CifAsr.from_pretrained(model_dir)
    with torch.no_grad():
        model.model.ctc_head.bias[0] += 30
    return model


def test_silence_has_no_text(model_dir, tmp_path, capsys):
    soundfile.write(tmp_path / "silence.wav", np.zeros(64000), 16000)
    soundfile.write(tmp_path / "digit.wav", np.random.default_rng(0).integers(-1, 2, 64000).astype(np.int16), 16000)
    paths = [tmp_path / "silence.wav", make_noise(tmp_path / "noise.wav", 4.0), tmp_path / "digit.wav"]
    model = CifAsr.from_pretrained(model_dir)
    for method in ("greedy", "ctc"):
        silence, noise, digit = model.transcribe(paths, SearchConfig(method))
        told = silence.extra["guard"]["cif_text"]
        assert noise.text
        assert noise.extra == {}
        for hypothesis in (silence, digit):
            assert (hypothesis.text, hypothesis.tokens, hypothesis.error) == ("", [], None)
            guard = hypothesis.extra["guard"]
            assert (guard["decision"], guard["reason"]) == ("empty", "nothing louder than 6")
            assert guard["cif_text"]
    model.guard = None
    assert model.transcribe(paths[0], SearchConfig("ctc"))[0].text == told
    command = ["transcribe", "--model", str(model_dir), str(paths[0]), "--search", "ctc"]
    assert [main.main([*command, *more]) for more in ([], ["--no-guard"])] == [0, 0]
    assert capsys.readouterr().out == f"silence\nsilence {told}\n"


@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="the optional package silero-vad is not installed")
def test_voice_activity_has_the_last_word_in_doubt(doubting, tmp_path, recordings):
    heard = doubting.transcribe([make_noise(tmp_path / "noise.wav", 4.0), recordings[0]])
    assert [bool(hypothesis.text) for hypothesis in heard] == [False, True]
    assert heard[0].extra["guard"]["reason"] == "voice activity hears nobody"
    assert heard[0].extra["guard"]["heard_per_unit"] < 0.1


def test_without_voice_activity_ctc_decides(doubting, tmp_path, recordings, monkeypatch):
    def refuse():
        raise MissingDependency("silero-vad")

    monkeypatch.setattr(voice, "load_vad", refuse)
    for path in (make_noise(tmp_path / "noise.wav", 4.0), recordings[0]):
        (hypothesis,) = doubting.transcribe(path)
        assert hypothesis.extra["guard"]["reason"] == "CTC hears less than 0.5 steps per unit"


def test_broken_files_cost_only_themselves(model_dir, tmp_path):
    good = make_noise(tmp_path / "good.wav", 1.0, rate=44100, channels=2)
    (tmp_path / "text.wav").write_text("no sound here")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "cut.flac").write_bytes(make_noise(tmp_path / "whole.flac", 3.0).read_bytes()[:400])
    soundfile.write(tmp_path / "tiny.wav", np.zeros(20), 16000)
    names = ["text.wav", "good.wav", "empty.wav", "cut.flac", "tiny.wav", "absent.wav"]
    report = DecodingReport()
    model = CifAsr.from_pretrained(model_dir)
    hypotheses = list(model.stream([tmp_path / name for name in names], report=report))
    assert [h.id for h in hypotheses] == ["text", "good", "empty", "cut", "tiny", "absent"]
    assert [h.error is None for h in hypotheses] == [False, True, False, False, False, False]
    assert [name for name, _ in report.failed] == ["text", "empty", "cut", "tiny", "absent"]
    assert hypotheses[1].text == model.transcribe(good)[0].text
    assert report.utterances == 6


def test_save_pretrained_gives_the_same_model(model_dir, tmp_path):
    path = make_noise(tmp_path / "a.wav", 2.0)
    model = CifAsr.from_pretrained(model_dir)
    model.save_pretrained(tmp_path / "copy" / "model")
    copy = CifAsr.from_pretrained(tmp_path / "copy" / "model")
    assert copy.weights_sha256 == model.weights_sha256
    assert copy.transcribe(path) == model.transcribe(path)


def test_command_line_writes_json_with_its_description(model_dir, tmp_path, recordings):
    (tmp_path / "bad.wav").write_text("x")
    done = cli("transcribe", "--model", model_dir, *recordings, tmp_path / "bad.wav", "--out", tmp_path / "hyp.jsonl")
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in (tmp_path / "hyp.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [*(path.stem for path in recordings), "bad"]
    assert rows[-1]["text"] == ""
    assert "bad.wav" in rows[-1]["error"]
    assert b"bad.wav" in done.stderr
    assert b"Traceback" not in done.stderr
    meta = json.loads((tmp_path / "hyp.jsonl.meta.json").read_text())
    assert meta["utterances"] == 4
    assert meta["failed"] == 1
    assert len(meta["checkpoint_sha256"]) == 64


def test_command_line_reads_a_pipe_and_a_kaldi_directory(model_dir, tmp_path):
    path = make_noise(tmp_path / "a.wav", 2.0)
    piped = cli("transcribe", "--model", model_dir, "-", input=path.read_bytes())
    named = cli("transcribe", "--model", model_dir, path)
    assert piped.stdout.decode().split()[1] == named.stdout.decode().split()[1]
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text(f"a {path}\ngone {tmp_path / 'gone.wav'}\n")
    (kaldi / "segments").write_text("s1 a 0.0 1.0\ns2 a 1.0 2.0\ns3 a 1.5 9.0\n")
    done = cli("transcribe", "--model", model_dir, "--kaldi", kaldi, "--format", "json")
    rows = {row["id"]: row for row in map(json.loads, done.stdout.decode().splitlines())}
    assert {"s1", "s2", "s3"} <= set(rows)  # nothing is lost
    assert rows["s2"]["error"] is None
    assert rows["s2"]["tokens"][0]["start"] == 1.0
    assert "outside" in rows["s3"]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.wav", "--kaldi", "d"], "exactly one way"),
        ([], "exactly one way"),
        (["--cuts", "absent.jsonl.gz"], "absent.jsonl.gz: no such manifest"),
        (["--kaldi", "absent"], "absent"),
        (["a.wav", "--image", "absent.png"], "absent.png: no such file"),
        (["a.wav", "--device", "tpu9"], "unknown"),
        (["a.wav", "--ctc-weight", "1.5"], "ctc_weight"),
    ],
)
def test_mistakes_get_one_line(model_dir, arguments, message):
    done = cli("transcribe", "--model", model_dir, *arguments)
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_check_invariance_passes_and_can_fail(model_dir):
    import torch

    from xllm_speech.infer.invariance import check_invariance
    from xllm_speech.models.checkpoints import load_asr

    good = load_asr(model_dir)
    report = check_invariance(good, ["greedy", "beam", "fast"], None, 12, "cpu")
    assert report["invariant"]
    assert report["encoder_difference"] < 1e-4
    broken = load_asr(model_dir)
    encode = broken.model.encode

    def leak(fbank):
        out = encode(fbank)
        return type(out)(out.x_BSD + 0.3 * torch.arange(out.x_BSD.shape[0])[:, None, None], out.lens_B)

    broken.model.encode = leak
    assert not check_invariance(broken, ["greedy"], None, 12, "cpu")["invariant"]
