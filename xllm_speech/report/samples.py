"""Sample answers: the question with its media, what was answered with them and without, and what would have been right."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from xllm_speech.base.errors import UserError
from xllm_speech.features.augment import hashed_fraction
from xllm_speech.interfaces.config import KINDS
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.cuts import PathFinder
from xllm_speech.prompts import with_instructions
from xllm_speech.records import Conversation, ConversationItem
from xllm_speech.report.alignment import Alignment
from xllm_speech.report.experiment import Answers, Experiment, ScoredUtterance
from xllm_speech.report.media import audio_address, clip_address, image_address
from xllm_speech.report.results import heading
from xllm_speech.text.normalise import normalise

TITLES = {
    "caption": "descriptions of images", "vl": "typed questions", "vsd": "spoken questions about an image",
    "video": "descriptions of clips", "asr": "speech recognition", "masr": "speech recognition with an image",
    "chat": "dialogue",
}


@dataclass(frozen=True)
class Medium:
    """kind: image, clip or audio; address: `data:...`; words: what is said or shown, for who cannot hear or see it."""

    kind: str
    address: str
    words: str


@dataclass(frozen=True)
class Text:
    """One answer or transcript: who gave it; letters: (stretch, whether it is wrong); right: None where nobody can tell."""

    who: str
    letters: list[tuple[str, bool]]
    right: bool | None = None


@dataclass
class Sample:
    """One card of the page."""

    id: str
    question: str
    said: str = ""
    media: list[Medium] = field(default_factory=list)
    reference: str = ""
    texts: list[Text] = field(default_factory=list)
    figure: str = ""


@dataclass
class SampleGroup:
    """Samples of one task; note: how they were drawn, and how many were right."""

    title: str
    note: str
    samples: list[Sample]
    layout: str = "cards"  # or grid, for wider ones


def answer_samples(experiment: Experiment, count: int) -> list[SampleGroup]:
    """`count` answers of each task of each file, drawn by their ids whatever was answered."""
    groups = []
    spoken = {row.id: row.reference for score in experiment.scores for row in score.utterances}
    whole = [answers for answers in experiment.answers if not answers.without]
    for answers in whole:
        for task in dict.fromkeys(row["task"] for row in answers.rows):
            group = _group(experiment, answers, task, count, spoken)
            if group is not None:
                groups.append(group)
    return groups


def _group(experiment: Experiment, answers: Answers, task: str, count: int, spoken: dict[str, str]) -> SampleGroup | None:
    rows = [row for row in answers.rows if row["task"] == task]
    chosen = sorted(rows, key=lambda row: hashed_fraction("report", row["id"]))[:count]
    manifest = Path(PathFinder(experiment.root).find(answers.conversations, probe=True))
    wanted = {row["id"] for row in chosen}
    found = experiment.attempt(manifest, partial(_conversations, manifest, wanted, answers)) or {}
    finder = PathFinder(manifest.parent)
    baselines = {
        ", ".join(f"without {kind}" for kind in other.without): {row["id"]: row for row in other.rows}
        for other in experiment.answers if other.without and other.conversations == answers.conversations
    }
    samples = []
    for row in chosen:
        reference = row["reference"] if isinstance(row.get("reference"), str) else ""
        texts = [_judged("X-LLM", row["text"], reference)]
        if row.get("error"):
            texts = [Text("X-LLM", [(str(row["error"]), True)], False)]
        for who, others in baselines.items():
            if row["id"] in others:
                texts.append(_judged(who, others[row["id"]]["text"], reference))
        sample = Sample(row["id"], "", reference=reference, texts=texts)
        if row["id"] in found:
            _add_question(experiment, sample, found[row["id"]], finder, spoken)
        samples.append(sample)
    right = [row for row in rows if isinstance(row.get("reference"), str)]
    exact = sum(normalise(row["text"]) == normalise(row["reference"]) for row in right)
    note = f"{len(samples)} of {len(rows)}, drawn by their ids, not by what was answered"
    if right:
        note += f"; {exact} of {len(right)} are exactly right"
    has_clip = any(medium.kind == "clip" for sample in samples for medium in sample.media)
    title = TITLES.get(task, task)
    if task == "vl":
        title += " about a clip" if has_clip else " about an image"
    return SampleGroup(title, f"{note}. From {answers.path}.", samples)


def _conversations(path: Path, wanted: set[str], answers: Answers) -> dict[str, Conversation]:
    """The conversations as they were asked, by id."""
    found = {item.id: item for item in read_conversations(path, kinds=("text", *KINDS)) if item.id in wanted}
    if answers.instructions is not None:
        for id, item in found.items():
            with contextlib.suppress(UserError):  # a task without instructions: its media stand alone
                found[id] = with_instructions(item, wording=answers.wording, instructions=answers.instructions)
    return found


def _add_question(
    experiment: Experiment, sample: Sample, conversation: Conversation, finder: PathFinder, spoken: dict[str, str]
) -> None:
    """Texts and media of everything that was said before the answer."""
    messages = conversation.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    words = []
    for message in messages:
        for item in message.items:
            if item.type == "text":
                words.append(item.text or "")
            elif item.path is not None:
                medium = experiment.attempt(item.path, partial(_medium, item, item.path, finder, spoken))
                sample.media += [] if medium is None else [medium]
    sample.said = " ".join(medium.words for medium in sample.media if medium.kind == "audio" and medium.words)
    sample.question = " ".join(filter(None, words))


def _medium(item: ConversationItem, name: str, finder: PathFinder, spoken: dict[str, str]) -> Medium | None:
    path = finder.find(name, probe=True)
    match item.type:
        case "image":
            return Medium("image", image_address(path), f"image {Path(path).name}")
        case "video":
            part = "" if item.offset_sec is None and item.duration_sec is None else "a part of "
            words = f"frames of {part}the clip {Path(path).name}, from its start to its end"
            return Medium("clip", clip_address(path, item.offset_sec or 0.0, item.duration_sec), words)
        case "speech" | "audio":
            text = spoken.get(Path(path).stem, "") if item.offset_sec is None else ""
            return Medium("audio", audio_address(path, item.offset_sec or 0.0, item.duration_sec), text)
        case _:
            return None


def _judged(who: str, text: str, reference: str) -> Text:
    right = normalise(text) == normalise(reference) if reference else None
    return Text(who, [(text or "(nothing)", False)], right)


def alignment_sample(experiment: Experiment, item: Alignment, figure: str) -> Sample:
    """An utterance with its recording, its alignment and everything that the score files have it recognised as."""
    sample = Sample(item.id, f"{item.set}: {item.id}", reference=item.reference)
    if item.image is not None:
        image = item.image
        address = experiment.attempt(image, lambda: image_address(image))
        if address is not None:
            sample.media.append(Medium("image", address, f"image {Path(image).name}"))
    address = experiment.attempt(item.id, lambda: audio_address(item.cut))
    if address is not None:
        sample.media.append(Medium("audio", address, item.reference))
    for score in sorted(experiment.scores, key=lambda score: (score.model, score.condition)):
        for row in score.utterances if score.set == item.set else ():
            if row.id == item.id:
                sample.texts.append(Text(heading(score.model, score.condition), letters_of(row), row.errors == 0))
    if not sample.texts:
        sample.texts.append(_judged("CIF model", item.text, item.reference))
    sample.figure = figure
    return sample


def letters_of(row: ScoredUtterance) -> list[tuple[str, bool]]:
    """The hypothesis in stretches, right and wrong ones apart; a missing character shows as ×."""
    letters: list[tuple[str, bool]] = []
    text = iter(row.hypothesis.replace(" ", ""))
    for operation in row.operations:
        letter, wrong = ("×", True) if operation == "D" else (next(text, ""), operation != "C")
        if letters and letters[-1][1] == wrong:
            letters[-1] = (letters[-1][0] + letter, wrong)
        else:
            letters.append((letter, wrong))
    return letters or [("(nothing)", bool(row.length))]
