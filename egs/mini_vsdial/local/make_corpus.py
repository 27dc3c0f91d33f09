#!/usr/bin/env python
"""Make the mini corpus: drawn pictures, Chinese dialogues about them, spoken questions, short clips, text.

    make_corpus.py --out data/corpus [--seed 17] [--jobs 2] [--train 2400 --dev 120 --test 200 ...]

The same seed and sizes give the same bytes, whatever `--jobs` is. A killed run is resumed: every file appears whole or
not at all, `plan.json` says what the folder is to become, and `manifest.json`, written last, says that it is complete.

    visdial_1.0_{train,val,test}.json   dialogues in the form of VisDial v1.0     images/<split>/<image id>.png
    speech.jsonl                        one row per spoken question               speech/<split>/<utterance id>.flac
    clips.jsonl                         one row per clip of a moving shape        clips/<split>/<clip id>.mp4
    scenes.jsonl                        what each picture shows, with boxes
    text.jsonl                          captions and dialogues alone, over all colour-shape pairs
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL
import plan as planning
import soundfile
from clips import clip_frames, encode_clip
from drawing import draw_picture
from noise import mix_babble, place
from plan import Picture, PlannedClip, Sizes, stream
from scenes import draw_scene
from voices import SAMPLE_HZ, VARIANTS, engine_name, speak

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import read_json, sha256_file, write_json

MODULES = ("clips", "dialogues", "drawing", "make_corpus", "noise", "plan", "scenes", "voices")  # what decides the bytes
MADE = ("images", "speech", "clips")  # folders of the corpus; the files beside them are written by every run
BABBLE_TRACKS = 24
BABBLE_SEC = 6
Job = Picture | PlannedClip


def log(words: str) -> None:
    """One line of progress, at once."""
    print(f"make_corpus: {words}", flush=True)


def save(path: Path, content: bytes) -> None:
    """Write a file whole: under another name, then renamed."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def make_babble(seed: int) -> list[np.ndarray]:
    """Tracks of three to five voices that talk at once, about scenes of their own."""
    tracks = []
    for number in range(BABBLE_TRACKS):
        rng = stream(seed, "babble", number)
        voices = []
        for _ in range(int(rng.integers(3, 6))):
            text = draw_scene(rng).caption
            variant = VARIANTS[int(rng.integers(len(VARIANTS)))]
            voices.append(speak(text, variant, int(rng.integers(170, 241)), int(rng.integers(25, 76))))
        tracks.append(mix_babble(rng, voices, BABBLE_SEC * SAMPLE_HZ))
    return tracks


def make_item(job: Job, out: Path, seed: int, babble: list[np.ndarray]) -> None:
    """Draw and speak one item, leaving alone what an earlier run finished."""
    if isinstance(job, PlannedClip):
        if not (out / job.path).exists():
            rng = stream(seed, f"frames-{job.split}", int(job.id.rpartition("-")[2]))
            save(out / job.path, encode_clip(clip_frames(job.clip, rng)))
        return
    if not (out / job.path).exists():
        target = io.BytesIO()
        draw_picture(job.scene, stream(seed, "pixels", job.image_id)).save(target, "png", compress_level=3)
        save(out / job.path, target.getvalue())
    spoken = job.utterance
    if spoken is not None and not (out / job.speech_path).exists():
        rng = stream(seed, "sound", job.image_id)
        samples = speak(spoken.text, spoken.variant, spoken.speed, spoken.pitch)
        samples = place(rng, samples, spoken.noise, spoken.snr_db, babble, SAMPLE_HZ)
        target = io.BytesIO()
        soundfile.write(target, samples, SAMPLE_HZ, format="FLAC", subtype="PCM_16")
        save(out / job.speech_path, target.getvalue())


def _work(jobs: list[Job], out: Path, seed: int, babble: list[np.ndarray], report: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    done = 0
    try:
        for job in jobs:
            if os.getppid() != parent:  # the run was killed: do not go on alone
                return
            make_item(job, out, seed, babble)
            done += 1
            if done % 20 == 0:
                report.send(20)
        report.send(done % 20)
    except (UserError, OSError) as error:
        report.send(f"{error}")
    finally:
        report.close()


def make_items(jobs: list[Job], out: Path, seed: int, babble: list[np.ndarray], workers: int) -> None:
    """Make all items in `workers` processes, showing progress; the first error stops all of them."""
    begun, done, shown = time.monotonic(), 0, 0
    context = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    crew = []
    for number in range(workers):
        receiver, sender = context.Pipe(duplex=False)
        share = (jobs[number::workers], out, seed, babble, sender, os.getpid())
        worker = context.Process(target=_work, args=share, daemon=True)
        worker.start()
        sender.close()
        pipes.append(receiver)
        crew.append(worker)
    try:
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    word = pipe.recv()
                except EOFError:
                    pipes.remove(pipe)
                    continue
                if isinstance(word, str):
                    raise DataError(word)
                done += word
                if done * 10 // len(jobs) > shown:
                    shown = done * 10 // len(jobs)
                    log(f"{shown * 10:3d} % ({done} of {len(jobs)} items, {time.monotonic() - begun:.0f} s)")
    finally:
        for worker in crew:
            if pipes:
                worker.terminate()
            worker.join()
    if done != len(jobs):
        codes = [worker.exitcode for worker in crew]
        raise DataError(f"{out}: {len(jobs) - done} of {len(jobs)} items were not made (workers ended with {codes}); run again")


def _code_hash() -> str:
    digest = hashlib.sha256()
    for name in MODULES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {"numpy": np.__version__, "pillow": PIL.__version__, "av": av.__version__, "soundfile": soundfile.__version__}


def tree_hash(out: Path, names: list[str]) -> str:
    """SHA-256 over `sha256  name` lines of the named files, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{sha256_file(out / name)}  {name}\n".encode())
    return digest.hexdigest()


def begin(out: Path, plan: dict[str, Any]) -> bool:
    """Set the folder up for `plan`: continue when it was begun for the same one, else start anew.

    Returns whether it is complete already.

    Raises:
        DataError: the folder holds something that this program did not make.
    """
    plan_path, manifest_path = out / "plan.json", out / "manifest.json"
    if plan_path.exists():
        try:
            same = read_json(plan_path) == plan
        except DataError:
            same = False
        if same and manifest_path.exists():
            return True
        if same:
            log(f"{out}: an unfinished run with the same settings is continued")
        else:
            log(f"{out}: made with other settings; starting anew")
            manifest_path.unlink(missing_ok=True)
            for name in MADE:
                shutil.rmtree(out / name, ignore_errors=True)
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: not empty and not made by this program (no plan.json); name another --out or empty it")
    for name in MADE:
        for split in ("train", "test") if name == "clips" else planning.SPLITS:
            (out / name / split).mkdir(parents=True, exist_ok=True)
    write_json(plan_path, plan)
    return False


def make_corpus(out: Path, seed: int, sizes: Sizes, workers: int) -> dict[str, Any]:
    """Make the whole corpus in `out` and return its manifest (see the module's docstring)."""
    engine = engine_name()
    plan = {"seed": seed, "sizes": asdict(sizes), "engine": engine, "versions": _versions(), "code": _code_hash()}
    if begin(out, plan):
        log(f"{out}: complete and up to date")
        return dict(read_json(out / "manifest.json"))
    log(f"{sizes.train + sizes.dev + 5 * sizes.test} utterances, {sizes.train_images} training pictures; {engine}")
    pictures = planning.plan_pictures(seed, sizes)
    clips = planning.plan_clips(seed, sizes)
    tables: dict[str, Callable[[], bytes]] = {
        "speech.jsonl": lambda: planning.as_lines(planning.speech_rows(pictures, engine, seed)),
        "scenes.jsonl": lambda: planning.as_lines(planning.scene_rows(pictures)),
        "clips.jsonl": lambda: planning.as_lines(planning.clip_rows(clips)),
        "text.jsonl": lambda: planning.as_lines(planning.text_rows(seed, sizes)),
    }
    for name, content in tables.items():
        save(out / name, content())
    names = list(tables)
    for split in planning.SPLITS:
        name = f"visdial_1.0_{split}.json"
        save(out / name, json.dumps(planning.visdial(pictures, split, seed), ensure_ascii=False).encode())
        names.append(name)
    make_items([*pictures, *clips], out, seed, make_babble(seed), workers)
    names += [picture.path for picture in pictures]
    names += [picture.speech_path for picture in pictures if picture.utterance]
    names += [clip.path for clip in clips]
    manifest = {
        **plan,
        "files": len(names),
        "bytes": sum((out / name).stat().st_size for name in names),
        "sha256": tree_hash(out, names),
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def main() -> int:
    """Command line; returns the exit status."""
    default = Sizes()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=_count, default=17)
    parser.add_argument("--jobs", type=_count, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)")
    parser.add_argument("--train", type=_count, default=default.train, help="spoken training questions (%(default)s)")
    parser.add_argument("--train-images", type=_count, help="training pictures, at least --train (default: twice --train)")
    parser.add_argument("--dev", type=_count, default=default.dev, help="spoken development questions (%(default)s)")
    parser.add_argument("--test", type=_count, default=default.test, help="spoken questions per test set (%(default)s)")
    parser.add_argument("--train-clips", type=_count, default=default.train_clips, help="training clips (%(default)s)")
    parser.add_argument("--test-clips", type=_count, default=default.test_clips, help="test clips (%(default)s)")
    parser.add_argument("--texts", type=_count, default=default.texts, help="rows of text alone (%(default)s)")
    args = parser.parse_args()
    if args.train_images is None:
        args.train_images = 2 * args.train
    if args.train_images < args.train:
        parser.error(f"--train-images {args.train_images} is less than --train {args.train}")
    sizes = Sizes(
        train=args.train,
        train_images=args.train_images,
        dev=args.dev,
        test=args.test,
        train_clips=args.train_clips,
        test_clips=args.test_clips,
        texts=args.texts,
    )
    begun = time.monotonic()
    try:
        manifest = make_corpus(args.out, args.seed, sizes, max(1, args.jobs))
    except UserError as error:
        print(f"make_corpus: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("make_corpus: interrupted; run again to continue", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"make_corpus: {error.filename or args.out}: {error.strerror}; run again to continue", file=sys.stderr)
        return 1
    size = f"{manifest['files']} files, {manifest['bytes'] / 2**20:.0f} MiB, sha256 {manifest['sha256'][:16]}"
    log(f"{args.out}: {size}, {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
