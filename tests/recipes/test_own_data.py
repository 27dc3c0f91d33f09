"""A user's own Kaldi directory of real recordings, faults included: train, survive kill -9, decode, score; one config."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

SMALL = [  # the sizes of conf/asr_small.yaml cost minutes; everything else of it stays
    "model.encoder.width=32", "model.encoder.feedforward=48", "model.encoder.channels=8", "model.encoder.blocks=3",
    "model.encoder.pool_after=[1,2]", "model.cif.channels=32", "model.decoder.feedforward=48", "train.num_threads=1",
    "data.max_cuts=6", "train.device=cpu", "train.save_every=3", "train.log_every=1",
]


def cli(*arguments):
    return [sys.executable, "-m", "xllm_speech.bin.main", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(cli(*arguments), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def own_data(shared_data, tmp_path_factory):
    """16, 22.05 and 8 kHz; wav, mp3 and flac; Chinese, Latin and mixed text; segments; and one of each fault."""
    folder = tmp_path_factory.mktemp("own") / "data"
    folder.mkdir()
    wavs, texts = {}, {}
    for line in (shared_data / "aishell1_sample_S0150" / "kaldi" / "text").read_text().splitlines()[:10]:
        name, text = line.split(maxsplit=1)
        wavs[name], texts[name] = shared_data / "aishell1_sample_S0150" / "wav" / "S0150" / f"{name}.wav", text
    for line in (shared_data / "audio_cmn_1500words" / "text").read_text().splitlines()[:8]:
        name, text = line.split(maxsplit=1)
        wavs[name], texts[name] = shared_data / "audio_cmn_1500words" / "mp3" / f"{name}.mp3", text
    for path in sorted((shared_data / "fsdd_3spk" / "recordings").glob("*.flac"))[:8]:
        wavs[path.stem], texts[path.stem] = path, "ZERO hello 你好"
    (folder / "broken.wav").write_text("this is no audio")
    wavs["broken"], texts["broken"] = folder / "broken.wav", "坏了"
    first = next(iter(wavs))
    wavs["silent"], texts["silent"] = wavs[first], ""
    wavs["absent"], texts["absent"] = folder / "absent.wav", "没有"
    segments = {name: (name, 0.0, -1.0) for name in wavs}
    segments["part"], texts["part"] = (first, 0.2, 1.5), "一部分"
    segments["beyond"], texts["beyond"] = (first, 1.0, 99.0), "超出"
    (folder / "wav.scp").write_text("".join(f"{name} {path}\n" for name, path in wavs.items()))
    (folder / "text").write_text("".join(f"{name} {text}\n" for name, text in texts.items()))
    (folder / "segments").write_text("".join(f"{n} {r} {s} {e}\n" for n, (r, s, e) in segments.items()))
    (folder / "utt2spk").write_text("".join(f"{name} someone\n" for name in texts))
    return folder, texts


FAULTS = {"broken", "silent", "absent", "beyond"}


@pytest.fixture(scope="module")
def trained(own_data, top, tmp_path_factory):
    """An undisturbed run of 12 steps."""
    out = tmp_path_factory.mktemp("undisturbed") / "exp"
    done = run("train", "--config", top / "conf" / "asr_small.yaml", "--out", out, f"data.train={own_data[0]}",
               "train.max_steps=12", *SMALL)
    assert done.returncode == 0, done.stderr
    return out, done


def test_training_reports_what_is_wrong_and_loses_nothing(trained, own_data):
    out, done = trained
    assert "Traceback" not in done.stderr
    rejected = {row["id"]: row for row in map(json.loads, (out / "data" / "rejected.jsonl").read_text().splitlines())}
    assert set(rejected) >= FAULTS
    assert set(rejected) - FAULTS == set()
    import gzip

    used = set()
    for name in ("train", "dev"):
        for path in (out / "data").glob(f"{name}*.jsonl.gz"):
            with gzip.open(path, "rt") as stream:
                used |= {json.loads(line)["id"] for line in stream}
    assert used == set(own_data[1]) - FAULTS


def test_decoding_answers_every_utterance_and_scores(trained, own_data, tmp_path):
    out, _ = trained
    folder, texts = own_data
    done = run("transcribe", "--model", out, "--kaldi", folder, "--out", tmp_path / "hyp.jsonl", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "hyp.jsonl").read_text().splitlines())}
    assert set(rows) == set(texts)
    assert {name for name, row in rows.items() if row["error"]} == {"broken", "absent", "beyond"}
    scored = run("score", "--ref", folder / "text", "--hyp", tmp_path / "hyp.jsonl", "--out", tmp_path / "score.json")
    assert scored.returncode == 0, scored.stderr
    score = json.loads((tmp_path / "score.json").read_text())
    letters = sum(sum(letter.isalnum() for letter in text) for text in texts.values())  # punctuation does not count
    assert score["counts"]["N"] == letters


@pytest.mark.slow
def test_kill_minus_nine_and_resume_end_with_the_same_weights(trained, own_data, top, tmp_path):
    out = tmp_path / "exp"
    command = cli("train", "--config", top / "conf" / "asr_small.yaml", "--out", out, f"data.train={own_data[0]}",
                  "train.max_steps=12", *SMALL)
    for wanted in ("step_00000003", "step_00000006"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 240
        while not (out / "checkpoints" / wanted).is_dir():
            assert time.monotonic() < deadline, f"{wanted} did not appear"
            assert process.poll() is None or (out / "checkpoints" / wanted).is_dir(), "the run ended early"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout + done.stderr
    for name in ("final/model.safetensors", "checkpoints/step_00000012/optimizer.pt"):
        assert (out / name).read_bytes() == (trained[0] / name).read_bytes(), name
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert "up to date" in again.stdout
    shutil.rmtree(out)
