"""An experiment folder -> the page (evaluation.md, The report), section by section, with what is there and what is not."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from xllm_speech.base.config import require
from xllm_speech.base.files import atomic_write
from xllm_speech.report import costs, results
from xllm_speech.report.alignment import align_some
from xllm_speech.report.experiment import Experiment
from xllm_speech.report.figures import Drawing, Glyphs
from xllm_speech.report.gather import gather
from xllm_speech.report.plots import plot_alignment, plot_scores, plot_training
from xllm_speech.report.samples import SampleGroup, alignment_sample, answer_samples
from xllm_speech.report.tables import Table, as_markdown, count, percent
from xllm_speech.report.template import CSS, HTML
from xllm_speech.version import __version__

logger = logging.getLogger(__name__)

NO_FONT = (
    "No font with the Chinese glyphs of these figures was found where the report was made: their text is left to the fonts of "
    "your browser. Debian's fonts-noto-cjk, or --font FILE, draws it into the figures."
)


@dataclass(frozen=True)
class ReportJob:
    """The options of `xllm-speech report`.

    out: the page, `folder/report/index.html` unless given. markdown: also the tables, as Markdown. samples: answers per task,
    and utterances whose alignment is drawn. use_model: False leaves the alignments out. font: for Chinese in figures.

    Raises:
        ConfigError: a negative number of samples.
    """

    folder: Path
    out: Path | None = None
    markdown: Path | None = None
    samples: int = 4
    use_model: bool = True
    font: Path | None = None

    def __post_init__(self) -> None:
        require(self.samples >= 0, f"--samples {self.samples} must not be negative")


@dataclass(frozen=True)
class Tile:
    """A figure that stands out at the top."""

    title: str
    value: str
    small: str = ""


@dataclass
class Section:
    """What stands below a heading.

    absent: words on what is not there. tables: `beside` is a figure that stands beside the first. details: folded tables.
    items: (file, what is wrong with it).
    """

    id: str
    title: str
    absent: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    beside: Markup | None = None
    figures: list[tuple[str, Markup]] = field(default_factory=list)
    groups: list[SampleGroup] = field(default_factory=list)
    details_title: str = ""
    details: list[Table] = field(default_factory=list)
    items: list[tuple[str, str]] = field(default_factory=list)


def write_report(job: ReportJob) -> tuple[Path, Experiment]:
    """Write the page, and the Markdown where it is asked for, each whole or not at all; returns the page and what was read.

    Raises:
        DataError: no such folder, or nothing in it to show.
        ConfigError: the font is absent, or no font.
    """
    drawing = Drawing(Glyphs(job.font))
    experiment = gather(job.folder)
    sections = [
        _recognition(experiment, drawing), _questions(experiment), _training(experiment, drawing),
        _alignment(experiment, drawing, job), _samples(experiment, job), _cost(experiment), _models(experiment),
    ]
    if experiment.problems:
        words = ["These could not be used, or not fully; the rest of the page stands without them."]
        items = list(dict.fromkeys(experiment.problems))
        sections.append(Section("problems", "Files with faults", words, items=items))
    out = job.out or job.folder / "report" / "index.html"
    text = render(experiment, sections)
    with atomic_write(out) as stream:
        stream.write(text)
    if job.markdown is not None:
        tables = [*results.result_tables(experiment), *costs.cost_tables(experiment)]
        with atomic_write(job.markdown) as stream:
            stream.write(as_markdown(tables, f"Results of {experiment.name}"))
    return out, experiment


def render(experiment: Experiment, sections: list[Section]) -> str:
    """The page as HTML."""
    template = Environment(autoescape=True).from_string(HTML)
    return template.render(
        name=experiment.name, folder=str(experiment.root), date=time.strftime("%Y-%m-%d %H:%M"), version=__version__,
        css=Markup(CSS), tiles=_tiles(experiment), sections=sections,
    )


def _tiles(experiment: Experiment) -> list[Tile]:
    tiles, sets = [], results.sets_of(experiment)
    for model in results.NAMES:
        pooled = {
            condition: found[0] for name, condition in results.columns_of(experiment)
            if name == model and (found := results.pool(experiment.scores, model, condition)) is not None
            and found[1] == len(sets)
        }
        if pooled:
            value = " → ".join(percent(rate, 1) for rate in pooled.values())
            tiles.append(Tile(f"{results.NAMES[model]}: CER %, {' → '.join(pooled)}", value, "all test sets together"))
    for title, section, key in (
        ("questions about images, right", "image", "question_accuracy"),
        ("spoken questions, right", "spoken_question", "accuracy"),
    ):
        if (share := experiment.metrics.get((section, key))) is not None:
            tiles.append(Tile(title, f"{share:.0f} %", "exactly as the reference"))
    trained = [node for node in experiment.nodes if node.steps]
    if trained:
        minutes = sum(node.wall_sec or 0.0 for node in trained) / 60
        spent = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        tiles.append(Tile("training time", spent, f"{count(sum(node.trained or 0 for node in trained))} parameters trained"))
    return tiles


def _recognition(experiment: Experiment, drawing: Drawing) -> Section:
    section = Section("recognition", "Recognition")
    tables = [results.recognition(experiment), results.differences(experiment), results.homophones(experiment)]
    section.tables = [table for table in tables if table is not None]
    section.tables += map(results.conditions, experiment.conditions)
    models = {score.model for score in experiment.scores} | {keys[0] for keys in experiment.metrics}
    for model, verb, decades in (("cif_asr", "transcribe", "10-19"), ("llm_asr", "transcribe --method llm", "40-59")):
        if model not in models:
            section.absent.append(
                f"No score of the {results.NAMES[model]} yet: `xllm-speech {verb}` and `xllm-speech score --out` make them "
                f"(stages {decades} of a recipe)."
            )
    figure = plot_scores(experiment, drawing)
    if figure is not None:
        section.beside = Markup(figure)  # drawn here, so no text of others that could be HTML
    if (table := results.decodings(experiment)) is not None:
        section.details_title, section.details = "Counts, loops and speed behind the rates", [table]
    return section


def _questions(experiment: Experiment) -> Section:
    section = Section("questions", "Questions")
    tables = [results.questions(experiment), *results.texts(experiment), results.further(experiment)]
    section.tables = [table for table in [*tables, *map(results.judged, experiment.judged)] if table is not None]
    if tables[0] is None:
        section.absent.append(
            "No scores of answers yet: `xllm-speech answer` answers, and a recipe's scoring (stages 40-59) fills metrics.json."
        )
    if not experiment.judged:
        section.absent.append("No judged answers (LLaVA-test): `xllm-speech judge run --out` below this folder adds them.")
    return section


def _training(experiment: Experiment, drawing: Drawing) -> Section:
    section = Section("training", "Training")
    if (table := costs.trainings(experiment)) is not None:
        section.tables.append(table)
    else:
        section.absent.append("No training yet: `xllm-speech train` makes them (stages 10-39 of a recipe).")
    for training in experiment.trainings:
        figure = experiment.attempt(training.folder, partial(plot_training, training, drawing))
        if figure is not None:
            title = training.path if training.task == training.path else f"{training.path} ({training.task})"
            section.figures.append((title, Markup(figure)))
    return section


def _alignment(experiment: Experiment, drawing: Drawing, job: ReportJob) -> Section:
    section = Section("alignment", "Speech cut into units")
    if not job.use_model or not job.samples:
        section.absent.append("Left out, as was asked for: the model was not run.")
        return section
    found = align_some(experiment, job.samples)
    samples = [alignment_sample(experiment, item, Markup(plot_alignment(item, drawing))) for item in found]
    if not samples:
        section.absent.append(
            "No alignments: they need a CIF ASR model (stages 10-19 of a recipe) and the cuts of a test set beside its "
            "reference, or those that a training keeps of its dev set."
        )
        return section
    section.groups.append(SampleGroup(
        "integrate-and-fire",
        "Drawn by their ids, not by how well they went. Dashed lines: the moments at which a unit fires and becomes a token; "
        "bars: the weight alpha of every 80 ms step; line: its sum, which fires at 1 and starts anew with what is left. At the "
        "end of speech a remainder that is large enough fires too.",
        samples, "grid",
    ))
    if drawing.left_as_text:
        section.absent.append(NO_FONT)
        logger.warning("%s", NO_FONT)
    return section


def _samples(experiment: Experiment, job: ReportJob) -> Section:
    section = Section("samples", "Sample answers")
    section.groups = answer_samples(experiment, job.samples) if job.samples else []
    if not section.groups:
        section.absent.append(
            "Left out, as was asked for." if not job.samples
            else "No answers yet: `xllm-speech answer --out` makes them (stages 40-49 of a recipe)."
        )
    return section


def _cost(experiment: Experiment) -> Section:
    section = Section("cost", "Cost", tables=costs.cost_tables(experiment))
    if not experiment.stages:
        section.absent.append("No minutes.tsv: a recipe's stages write it as they run.")
    if not experiment.nodes:
        section.absent.append("No model of any phase: `xllm-speech train` makes them.")
    return section


def _models(experiment: Experiment) -> Section:
    tables = [costs.tree(experiment), costs.environment(experiment)]
    return Section("models", "Models and environment", tables=[table for table in tables if table is not None])
