"""One test set recognised under several conditions, or wordings of the instruction, and compared (evaluation.md, Does the
image help?).

Every condition is a hypothesis file of its own in the output folder, written whole; what is there already and was made of
the same things is kept, so a run that was killed goes on with the condition it was at.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lhotse.cut import Cut

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.base.files import read_json, sha256_file, write_json, write_jsonl
from xllm_speech.infer.asr import CifAsr, DecodingReport
from xllm_speech.infer.condition_media import Item, blank_images, hash_media, read_items, wrong_images
from xllm_speech.infer.formats import write_hypotheses
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.sources import CUTS_NAME
from xllm_speech.infer.xllm import XLLM
from xllm_speech.manifests.cuts import load_cuts
from xllm_speech.metrics.grounding import compare_conditions
from xllm_speech.metrics.score_file import NormalForm
from xllm_speech.prompts import INSTRUCTIONS
from xllm_speech.records import Hypothesis


@dataclass(frozen=True)
class Condition:
    """name: in tables and file names. title: in words. image: none, right, wrong or blank. caption: whether it is given."""

    name: str
    title: str
    image: str
    caption: bool


CONDITIONS: Mapping[str, Condition] = {
    condition.name: condition for condition in (
        Condition("S", "speech alone", "none", False),
        Condition("S+V", "speech and its image", "right", False),
        Condition("S+wrong", "speech and another utterance's image", "wrong", False),
        Condition("S+blank", "speech and an even grey image", "blank", False),
        Condition("S+L", "speech and the image's caption", "none", True),
        Condition("S+V+L", "speech, its image and the caption", "right", True),
    )
}
WORDED = {"S": "asr", "S+V": "masr"}  # conditions under which every wording is tried, and the task whose wordings they are
CAPTIONS_UNTRAINED = (
    "S+L and S+V+L: the caption stands in the prompt as text before the instruction; unless a source of its training had "
    "`captions: true`, they show what the LLM makes of it unprepared"
)


@dataclass(frozen=True)
class ConditionsJob:
    """What is recognised and how.

    conditions: names from `CONDITIONS`, the first is the one that others are compared with. wordings: also every wording of
    the instruction (`llm`). guard: False takes texts as they are. limit: the first so many utterances, 0 for all. seed: of the
    wrong images and the bootstrap.

    Raises:
        ConfigError: a value out of its range.
    """

    cuts: Path
    out: Path
    conditions: Sequence[str] = tuple(CONDITIONS)
    wordings: bool = False
    limit: int = 0
    seed: int = 0
    set_name: str | None = None
    max_tokens: int | None = None
    guard: bool = True
    batch_sec: float = 60.0

    def __post_init__(self) -> None:
        for name in self.conditions:
            require_choice("--only", name, tuple(CONDITIONS))
        require(len(set(self.conditions)) == len(self.conditions), f"--only {' '.join(self.conditions)}: a name comes twice")
        require(self.limit >= 0, f"--limit {self.limit} must not be negative")


Stream = Callable[[Iterator[Cut], int | None, DecodingReport], Iterator[Hypothesis]]


@dataclass(frozen=True)
class Recogniser:
    """A model as the conditions need it.

    method: cif or llm. described: what its texts depend on. stream: (cuts, wording, report) -> hypotheses, with the pictures
    and captions that cuts bring along. refusals: medium (image, caption) -> why the model does not take it. notes: on its
    results.
    """

    method: str
    described: dict[str, Any]
    stream: Stream
    refusals: Mapping[str, str]
    notes: Sequence[str] = ()


def load_recogniser(path: Path, method: str, job: ConditionsJob, device: torch.device) -> Recogniser:
    """A CIF ASR model (`cif`, greedy) or an X-LLM (`llm`, as `transcribe` takes it); `CheckpointError` where that fails.

    Raises:
        ConfigError: the X-LLM has no interface for speech, or wordings are asked of a CIF ASR model.
    """
    return _load_cif(path, job, device) if method == "cif" else _load_llm(path, job, device)


def _load_cif(path: Path, job: ConditionsJob, device: torch.device) -> Recogniser:
    require(not job.wordings, "--wordings is for --method llm: a CIF ASR model takes no instruction")
    model = CifAsr.from_pretrained(path, device)
    if not job.guard:
        model.guard = None
    refusals = {}
    if not model.sees_images:
        refusals["image"] = f"the CIF ASR model in {model.folder} was trained without pictures"
    if model.checkpoint.description.model.linguistic.kind == "none":
        refusals["caption"] = f"the CIF ASR model in {model.folder} has no encoder of captions (model.linguistic.kind none)"

    def stream(cuts: Iterator[Cut], wording: int | None, report: DecodingReport) -> Iterator[Hypothesis]:
        return model.stream(cuts, batch_sec=job.batch_sec, report=report)

    described = {"model": str(path), "checkpoint_sha256": model.weights_sha256, "method": "cif", "prompt": None}
    return Recogniser("cif", described | {"config": {"search": "greedy", "guard": job.guard}}, stream, refusals)


def _load_llm(path: Path, job: ConditionsJob, device: torch.device) -> Recogniser:
    model = XLLM.from_pretrained(path, device)
    options = AnswerOptions(job.max_tokens)
    refusals = {}
    if "image" not in model.kinds:
        refusals["image"] = f"the X-LLM in {model.folder} has interfaces for {', '.join(model.kinds)}, none for images"

    def stream(cuts: Iterator[Cut], wording: int | None, report: DecodingReport) -> Iterator[Hypothesis]:
        return model.stream(
            cuts, options, wording=wording, batch_sec=job.batch_sec, report=report, guard=job.guard, use_captions=True
        )

    config = {"max_tokens": job.max_tokens, "draft": "cif", "guard": job.guard}
    described = model.describe() | {"model": str(path), "config": config}
    return Recogniser("llm", described, stream, refusals, (CAPTIONS_UNTRAINED,))


@dataclass
class Plan:
    """What is to be decoded: for each name its cuts, the media hash, and the wording (None: drawn by the id)."""

    items: list[Item]
    images: dict[str, dict[str, str]]  # condition -> id -> picture
    media_sha256: dict[str, str]
    left_out: dict[str, str]
    notes: list[str] = field(default_factory=list)
    grey: int | None = None

    def cuts(self, name: str) -> Iterator[Cut]:
        """The cuts as they are heard, seen and read under a condition."""
        for item in self.items:
            yield item.with_media(self.images[name].get(item.cut.id), item.caption if CONDITIONS[name].caption else "")


def plan_conditions(job: ConditionsJob, refusals: Mapping[str, str]) -> Plan:
    """Read the test set and say what each condition shows; refusals: media that the model does not take, and why.

    Raises:
        DataError: the cuts are absent, broken or without transcripts.
        ConfigError: fewer than two conditions are left.
    """
    path = job.cuts / CUTS_NAME if job.cuts.is_dir() else job.cuts
    items, notes = read_items(itertools.islice(load_cuts(path), job.limit or None))
    if not items:
        raise DataError(f"{path}: no utterance in it")
    right = {item.cut.id: str(item.image) for item in items if item.image is not None}
    captioned = sum(bool(item.caption) for item in items)
    lacking = dict(refusals)
    if not right:
        lacking.setdefault("image", f"no utterance of {path} has a picture")
    if not captioned:
        lacking.setdefault("caption", f"no utterance of {path} has a caption")
    plan = Plan(items, {}, {}, {}, notes)
    contents = {str(item.image): item.picture.sha256 for item in items if item.picture is not None}
    for name in job.conditions:
        condition = CONDITIONS[name]
        wanted = (["image"] if condition.image != "none" else []) + (["caption"] if condition.caption else [])
        if why := [lacking[medium] for medium in wanted if medium in lacking]:
            plan.left_out[name] = "; ".join(why)
            continue
        match condition.image:
            case "right":
                images = right
            case "wrong":
                images = wrong_images(items, job.seed)
                if not images:
                    plan.left_out[name] = f"all pictures of {path} show the same or have the same caption"
                    continue
                if missing := len(right) - len(images):
                    plan.notes.append(f"{name}: {missing} utterances have no other picture and are as under S")
            case "blank":
                images, plan.grey = blank_images(items, job.out / "blank")
            case _:
                images = {}
        plan.images[name] = images
        plan.media_sha256[name] = hash_media(items, images, condition.caption, contents)
    told = any(CONDITIONS[name].caption for name in plan.images)
    for medium, number, there in (("picture", len(right), len(plan.images) > 1), ("caption", captioned, told)):
        if there and number < len(items):
            plan.notes.append(f"{len(items) - number} of {len(items)} utterances have no {medium}; conditions with one are for "
                              "them as without")
    if len(plan.images) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.left_out.items())
        raise ConfigError(f"nothing to compare: {reasons or 'name at least two conditions with --only'}")
    return plan


def run_conditions(
    job: ConditionsJob, recogniser: Recogniser, form: NormalForm
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Recognise what is not there yet, compare, and write `conditions.json` (and `wordings.json`) to `job.out`.

    Returns both contents, the second None without `job.wordings`. conditions.json is what `metrics.grounding` makes of the
    files, with titles, method, model, left_out (condition -> why), notes, and grey (level of the blank pictures). wordings.json
    has `wordings`: condition -> such a comparison of its wordings.

    Raises:
        ConfigError, DataError: as `plan_conditions`; a recording that cannot be read costs its own text, in every condition.
    """
    plan = plan_conditions(job, recogniser.refusals)
    reference = job.out / "ref.jsonl"
    write_jsonl(reference, (
        {"id": item.cut.id, "text": item.text, "caption": item.caption, "image": item.image} for item in plan.items
    ))
    captions = reference if any(item.caption for item in plan.items) else None
    compare = functools.partial(
        compare_conditions, reference, form=form, captions=captions, set_name=job.set_name, seed=job.seed
    )
    decode = functools.partial(_decode, job, recogniser, plan, sha256_file(_cuts_file(job)))
    about = {
        "method": recogniser.method, "model": recogniser.described["model"],
        "checkpoint_sha256": recogniser.described["checkpoint_sha256"],
    }
    told = any(CONDITIONS[name].caption for name in plan.images)
    notes = [*plan.notes, *(recogniser.notes if told else ())]
    files = {name: decode(name, None, job.out / f"{name}.jsonl") for name in plan.images}
    second = "S+V" if "S+V" in files and next(iter(files)) != "S+V" else None
    found = compare(files, beside=second) | about | {
        "titles": {name: CONDITIONS[name].title for name in files}, "left_out": plan.left_out, "notes": notes,
        "grey": plan.grey, "limit": job.limit or None,
    }
    write_json(job.out / "conditions.json", found)
    if not job.wordings:
        return found, None
    worded = {}
    for name in [name for name in WORDED if name in plan.images]:
        answers = {
            wording: decode(name, number, job.out / "wordings" / f"{name}.{number}.jsonl")
            for number, wording in enumerate(INSTRUCTIONS[WORDED[name]])
        }
        worded[name] = compare(answers)
    table = {"wordings": worded, "set": job.set_name, **about, "notes": plan.notes}
    write_json(job.out / "wordings.json", table)
    return found, table


def _cuts_file(job: ConditionsJob) -> Path:
    return job.cuts / CUTS_NAME if job.cuts.is_dir() else job.cuts


def _decode(
    job: ConditionsJob, recogniser: Recogniser, plan: Plan, cuts_sha256: str, name: str, wording: int | None, out: Path
) -> Path:
    """The hypothesis file of one condition; kept where it was made of the same model, speech, media and wording."""
    condition = CONDITIONS[name]
    described = recogniser.described | {"wording": wording}
    basis = json.dumps(
        [{key: value for key, value in described.items() if key != "model"}, cuts_sha256, plan.media_sha256[name], job.limit],
        sort_keys=True, ensure_ascii=False,
    )
    fingerprint = hashlib.sha256(basis.encode()).hexdigest()
    title = name if wording is None else f"{name}, wording {wording}"
    if out.is_file() and _fingerprint_of(out) == fingerprint:
        print(f"xllm-speech conditions: {title}: there already", file=sys.stderr)
        return out
    Path(f"{out}.meta.json").unlink(missing_ok=True)  # it would vouch for what is about to be replaced
    report = DecodingReport()
    begin = time.perf_counter()
    write_hypotheses(recogniser.stream(plan.cuts(name), wording, report), out, "json")
    wall_sec = time.perf_counter() - begin
    for what, why in report.failed if name == next(iter(plan.images)) else ():
        print(f"xllm-speech conditions: {what}: {why}", file=sys.stderr)
    write_json(f"{out}.meta.json", described | {
        "condition": name, "images": condition.image != "none", "captions": condition.caption, "fingerprint": fingerprint,
        "utterances": report.utterances, "failed": len(report.failed), "audio_sec": report.audio_sec, "wall_sec": wall_sec,
        "includes": "reading audio or features, model and search; not loading the model",
    })
    print(f"xllm-speech conditions: {title}: {report.utterances} utterances in {wall_sec:.1f} s", file=sys.stderr)
    return out


def _fingerprint_of(out: Path) -> str | None:
    path = Path(f"{out}.meta.json")
    meta = read_json(path) if path.is_file() else None
    return meta.get("fingerprint") if isinstance(meta, dict) else None
