"""What is installed and whether it works: the findings behind `xllm-speech doctor`.

Every package does one tiny operation in a child process: one that crashes on import costs its line, not the table.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

SETUP = "./utils/setup_env.sh"
CORE, EXTRA, PROGRAM = "core", "extra", "program"


@dataclasses.dataclass(frozen=True)
class Part:
    """One package or program: its name on the package index (or of the program), what needs it, what mends it."""

    name: str
    needed_for: str
    kind: str = CORE
    mend: str = SETUP


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found about a part; `status` is ok, missing, broken or `version differs`."""

    name: str
    kind: str
    version: str | None
    needed_for: str
    status: str
    mend: str | None
    detail: str | None = None


PARTS: tuple[Part, ...] = (
    Part("numpy", "everything"),
    Part("scipy", "the mini corpus, signal processing"),
    Part("torch", "everything"),
    Part("torchaudio", "features"),
    Part("torchvision", "images; timm imports it"),
    Part("lightning", "training (Fabric)"),
    Part("lhotse", "manifests, sampling"),
    Part("kaldiio", "Kaldi data directories"),
    Part("soundfile", "reading audio"),
    Part("av", "reading audio and video that soundfile cannot"),
    Part("pillow", "reading images"),
    Part("sentencepiece", "token tables for Latin and mixed text"),
    Part("omegaconf", "configuration"),
    Part("safetensors", "model files"),
    Part("tensorboard", "training curves"),
    Part("transformers", "image and text encoders, language models"),
    Part("timm", "image encoders"),
    Part("accelerate", "large language models across devices"),
    Part("peft", "fine-tuning language models"),
    Part("jiwer", "scoring"),
    Part("rapidfuzz", "alignment of transcripts"),
    Part("sacrebleu", "scoring captions and translations"),
    Part("httpx", "asking a judge"),
    Part("jinja2", "the report"),
    Part("matplotlib", "figures"),
    Part("rich", "tables and progress"),
    Part("torchcodec", "torchaudio.load (not used by this package)", EXTRA, "apt-get install --no-install-recommends ffmpeg"),
    Part("espnet", "comparison and interchange with ESPnet (extra espnet)", EXTRA),
    Part("espeakng-loader", "speech of the mini corpus (extra mini)", EXTRA),
    Part("gradio", "web demo (extra demo)", EXTRA),
    Part("fastapi", "serving (extra serve)", EXTRA),
    Part("uvicorn", "serving (extra serve)", EXTRA),
    Part("kaldifst", "graph search (extra graph)", EXTRA),
    Part("kaldi-decoder", "graph search (extra graph)", EXTRA),
    Part("silero-vad", "long recordings cut by voice activity (extra vad)", EXTRA),
    Part("sounddevice", "recognition from a microphone (extra microphone)", EXTRA),
    Part("flashlight-text", "lexicon search with an ARPA model (extra graph)", EXTRA),
    Part(
        "k2",
        "graph search and losses on the GPU",
        EXTRA,
        "a wheel for the installed torch from https://k2-fsa.github.io/k2/cpu.html or https://k2-fsa.github.io/k2/cuda.html",
    ),
    Part(
        "kenlm",
        "n-gram language models",
        EXTRA,
        "apt-get install --no-install-recommends g++ cmake && .venv/bin/python -m pip install 'kenlm>=0.3'",
    ),
    Part("pytest", "the tests (extra dev)", EXTRA),
    Part("git", "run headers name the commit", PROGRAM, "apt-get install --no-install-recommends git"),
    Part("espeak-ng", "speech of the mini corpus, where espeakng-loader is absent", PROGRAM,
         "apt-get install --no-install-recommends espeak-ng"),
    Part("ffmpeg", "pipes in Kaldi data directories", PROGRAM, "apt-get install --no-install-recommends ffmpeg"),
    Part("sox", "pipes in Kaldi data directories", PROGRAM, "apt-get install --no-install-recommends sox"),
    Part("chromium", "pictures of the web demo", PROGRAM,
         "apt-get install --no-install-recommends chromium fonts-noto-cjk"),
)


def operate(name: str) -> None:
    """Import one package and do the smallest thing that shows that it works; raises whatever the package raises."""
    match name:
        case "numpy":
            import numpy

            assert numpy.ones(2).sum() == 2
        case "scipy":
            from scipy.signal import resample_poly

            assert len(resample_poly([0.0, 1.0, 0.0, 1.0], 1, 2)) == 2
        case "torch":
            import torch

            assert (torch.ones(2, 2) @ torch.ones(2, 2)).sum() == 8
        case "torchaudio":
            import torch
            import torchaudio

            assert torchaudio.compliance.kaldi.fbank(torch.ones(1, 400), num_mel_bins=80).shape == (1, 80)
        case "torchvision":
            import torch
            import torchvision

            boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
            assert torchvision.ops.nms(boxes, torch.ones(1), 0.5).tolist() == [0]
        case "lightning":
            from lightning.fabric import Fabric

            assert Fabric(accelerator="cpu", devices=1).world_size == 1
        case "lhotse":
            from lhotse import CutSet

            assert len(CutSet.from_cuts([])) == 0
        case "kaldiio":
            import kaldiio

            assert callable(kaldiio.load_mat)
        case "soundfile":
            import io

            import numpy
            import soundfile

            stream = io.BytesIO()
            soundfile.write(stream, numpy.zeros(160), 16000, format="FLAC")
            stream.seek(0)
            assert len(soundfile.read(stream)[0]) == 160
        case "av":
            import av

            assert "mp3" in av.codecs_available
        case "pillow":
            from PIL import Image

            assert Image.new("RGB", (2, 2)).resize((1, 1)).size == (1, 1)
        case "sentencepiece":
            import sentencepiece

            sentencepiece.SentencePieceProcessor()
        case "omegaconf":
            from omegaconf import OmegaConf

            assert OmegaConf.from_dotlist(["a.b=1"]).a.b == 1
        case "safetensors":
            import torch
            from safetensors.torch import load, save

            assert load(save({"x": torch.ones(1)}))["x"] == 1
        case "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            assert callable(SummaryWriter)
        case "transformers":
            from transformers import BertConfig, BertModel

            tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
            assert BertModel(tiny).config.hidden_size == 8
        case "timm":
            import timm

            assert timm.is_model("vit_base_patch16_224")
        case "accelerate":
            import accelerate

            assert callable(accelerate.init_empty_weights)
        case "peft":
            import peft

            assert callable(peft.LoraConfig)
        case "rapidfuzz":
            from rapidfuzz.distance import Levenshtein

            assert Levenshtein.distance("ab", "ac") == 1
        case "sacrebleu":
            from sacrebleu.metrics import BLEU

            assert BLEU(tokenize="none").corpus_score(["a b c d"], [["a b c d"]]).score > 99
        case "httpx":
            import httpx

            assert callable(httpx.Client)
        case "jinja2":
            import jinja2

            assert jinja2.Template("{{ a }}").render(a=1) == "1"
        case "jiwer":
            import jiwer

            assert jiwer.cer("ab", "ac") == 0.5
        case "matplotlib":
            import matplotlib

            assert matplotlib.colors.to_rgb("red") == (1, 0, 0)
        case "rich":
            from rich.table import Table

            Table()
        case "torchcodec":
            import torchcodec

            assert torchcodec.__version__
        case "espnet":
            from espnet2.asr.encoder.conformer_encoder import ConformerEncoder  # the tasks take 16 s to import

            assert callable(ConformerEncoder)
        case "espeakng-loader":
            import espeakng_loader

            assert os.path.exists(espeakng_loader.get_library_path())
        case "gradio":
            metadata.version("gradio")  # importing it takes seconds and asks the network
        case "fastapi":
            import fastapi

            fastapi.FastAPI()
        case "uvicorn":
            import uvicorn

            assert callable(uvicorn.run)
        case "silero-vad":
            from xllm_speech.features.vad import load_vad

            load_vad()
        case "sounddevice":
            import sounddevice

            assert callable(sounddevice.RawInputStream)
        case "kaldifst":
            import kaldifst

            kaldifst.StdVectorFst()
        case "kaldi-decoder":
            import kaldi_decoder

            assert callable(kaldi_decoder.FasterDecoder)
        case "flashlight-text":
            from flashlight.lib.text.dictionary import Dictionary

            Dictionary()
        case "k2":
            import k2

            assert k2.ctc_topo(2).num_arcs > 0
        case "kenlm":
            import kenlm

            assert callable(kenlm.Model)
        case "pytest":
            import pytest

            assert pytest.__version__
        case _:
            raise AssertionError(f"no operation is written for {name}")


def work(names: list[str]) -> None:
    """The child process: operate each package and print one JSON line about it as soon as it is done."""
    import warnings

    warnings.simplefilter("ignore")
    for name in names:
        try:
            operate(name)
            error = None
        except (Exception, SystemExit) as caught:  # a package may raise anything while it is imported
            lines = str(caught).strip().splitlines()
            error = f"{type(caught).__name__}: {lines[0] if lines else ''}"[:200]
        print(json.dumps({"name": name, "error": error}), file=sys.__stdout__, flush=True)


def operate_all(names: list[str], timeout_sec: float = 180.0) -> dict[str, str | None]:
    """name -> error of its operation (None when it worked); a child that dies or hangs is charged to its package."""
    errors: dict[str, str | None] = {}
    while len(errors) < len(names):
        left = [name for name in names if name not in errors]
        code = "import sys; from xllm_speech.bin.installation import work; work(sys.argv[1:])"
        try:
            child = subprocess.run(
                [sys.executable, "-c", code, *left], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                timeout=timeout_sec,
            )
            output, end = child.stdout, f"the process ended with status {child.returncode}"
        except subprocess.TimeoutExpired as late:
            raw = late.stdout or b""
            output, end = raw if isinstance(raw, str) else raw.decode(), f"no answer within {timeout_sec:.0f} s"
        for row in _json_lines(output):
            errors[row["name"]] = row["error"]
        died = next((name for name in left if name not in errors), None)
        if died is not None:
            errors[died] = end
    return errors


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith('{"name"'):
            yield json.loads(line)


def wanted_versions() -> dict[str, str]:
    """Package -> version specifier, from the package's own metadata; empty where it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("xllm-speech") or []
    except metadata.PackageNotFoundError:
        return {}
    wanted: dict[str, str] = {}
    for line in lines:
        requirement = Requirement(line)
        wanted.setdefault(requirement.name.lower(), str(requirement.specifier))
    return wanted


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine(parts: tuple[Part, ...] = PARTS) -> list[Finding]:
    """Look at every part; nothing is installed or changed."""
    from packaging.specifiers import SpecifierSet

    wanted = wanted_versions()
    versions = {part.name: installed_version(part.name) for part in parts if part.kind != PROGRAM}
    errors = operate_all([name for name, version in versions.items() if version is not None])
    findings = []
    for part in parts:
        status, detail = "ok", None
        if part.kind == PROGRAM:
            version = shutil.which(part.name)
            status = "ok" if version else "missing"
        else:
            version = versions[part.name]
            specifier = wanted.get(part.name, "")
            if version is None:
                status = "missing"
            elif (detail := errors[part.name]) is not None:
                status = "broken"
            elif not SpecifierSet(specifier).contains(version.split("+")[0], prereleases=True):
                status, detail = "version differs", f"{specifier} is asked for"
        mend = None if status == "ok" else part.mend
        findings.append(Finding(part.name, part.kind, version, part.needed_for, status, mend, detail))
    return findings


def devices() -> dict[str, Any]:
    """Cores this process may use, memory, free disk, and CUDA devices as torch sees them (asked in a child process)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    code = (
        "import json, torch; print(json.dumps([{'name': torch.cuda.get_device_name(i), 'memory_gib': "
        "round(torch.cuda.get_device_properties(i).total_memory / 2**30, 1)} for i in range(torch.cuda.device_count())]))"
    )
    cuda: list[dict[str, Any]] = []
    try:
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        if child.returncode == 0:
            cuda = json.loads(child.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, json.JSONDecodeError, IndexError):
        pass  # torch's own line of the table tells what is wrong with it
    return {
        "cores": cores,
        "memory_gib": round(memory_gib, 1),
        "free_disk_gib": round(shutil.disk_usage(os.getcwd()).free / 2**30, 1),
        "cuda": cuda,
    }
