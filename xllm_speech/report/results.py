"""The tables of results: recognition, questions, judged answers, conditions side by side, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xllm_speech.metrics.rates import paired_bootstrap
from xllm_speech.report.experiment import Conditions, Experiment, Gap, Judged, Score
from xllm_speech.report.paper import TABLE_1, TABLE_4
from xllm_speech.report.tables import DASH, Cell, Table, percent, span

NAMES = {"cif_asr": "CIF model", "llm_asr": "X-LLM"}
# Section of metrics.json, title, key of the X-LLM's number, and of what is reached without a medium; keys in that section.
QUESTIONS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("image", "image: description, CER %", "caption_cer", {}),
    ("image", "image: typed question, right %", "question_accuracy", {"no image": "blind_accuracy"}),
    ("spoken_question", "image: spoken question, right %", "accuracy", {"no image": "no_image", "no speech": "no_speech"}),
    ("video", "clip: description, CER %", "caption_cer", {}),
    ("video", "clip: typed question, right %", "direction_accuracy", {"no clip": "blind_accuracy", "guess": "chance"}),
)
_ELSEWHERE = ("cif_asr", "llm_asr", "minutes", "homophone_accuracy", "intervals")


def result_tables(experiment: Experiment) -> list[Table]:
    """All tables of results that the experiment has anything for, in the order of the page."""
    tables = [recognition(experiment), differences(experiment), homophones(experiment)]
    tables += [conditions(found) for found in experiment.conditions]
    tables += [questions(experiment), *texts(experiment), further(experiment), *(judged(found) for found in experiment.judged)]
    return [table for table in tables if table is not None]


def columns_of(experiment: Experiment) -> list[tuple[str, str]]:
    """(model, condition) of everything that was recognised, CIF model first, S first."""
    pairs = {(score.model, score.condition) for score in experiment.scores}
    pairs |= {(keys[0], keys[2]) for keys in experiment.metrics if len(keys) == 3 and keys[0] in NAMES}
    order = list(NAMES)
    return sorted(pairs, key=lambda pair: (order.index(pair[0]) if pair[0] in order else 9, pair[0], len(pair[1]), pair[1]))


def sets_of(experiment: Experiment) -> list[str]:
    """Test sets, as metrics.json has them, then others by name."""
    known = [keys[1] for keys in experiment.metrics if len(keys) == 3 and keys[0] in NAMES]
    return list(dict.fromkeys([*known, *sorted(score.set for score in experiment.scores)]))


def heading(model: str, condition: str) -> str:
    """A column's heading."""
    return f"{NAMES.get(model, model)} {condition}".strip()


def recognition(experiment: Experiment) -> Table | None:
    """CER per set, model and condition with its interval, the paper's Table 4 below."""
    columns = columns_of(experiment)
    if not columns:
        return None
    scores = {(score.model, score.set, score.condition): score for score in experiment.scores}
    shown = [*columns]
    for pair in [(model, condition) for model in NAMES for condition in ("S", "S+V")]:
        if pair not in shown:
            shown.append(pair)
    shown.sort(key=lambda pair: ([*NAMES, pair[0]].index(pair[0]), len(pair[1]), pair[1]))
    table = Table("Recognition: character error rate, %", ["test set", *(heading(*pair) for pair in shown)])
    sets = sets_of(experiment)
    for name in sets:
        cells = [_cer(scores.get((model, name, condition)), experiment, (model, name, condition)) for model, condition in shown]
        _mark_best(cells)
        table.add(name, *cells)
    if len(sets) > 1:
        pooled = [_pooled(experiment.scores, *pair, len(sets)) for pair in shown]
        if any(cell.text != DASH for cell in pooled):
            _mark_best(pooled)
            table.add("all together", *pooled)
    table.add_group("the paper, Table 4 (AISHELL-2 and VSDial-CN: other recordings unless the sets above are these)")
    for name, row in TABLE_4.items():
        table.add(name, *(Cell(row.get(model, {}).get(condition, DASH), mark="muted") for model, condition in shown))
    table.note = (
        "S: speech alone; S+V: with the image. Below each figure its 95 % bootstrap interval over utterances; a dash: not "
        "measured. Two figures of the paper: before and after its fine-tuning on instructions for recognition."
    )
    return table


def _cer(score: Score | None, experiment: Experiment, key: tuple[str, str, str]) -> Cell:
    told = experiment.metrics.get(key)
    if score is None:
        return Cell(percent(told))
    if told is not None and score.cer is not None and abs(told - score.cer) > 0.01:
        experiment.note(score.path, f"CER {score.cer:.3f}, but metrics.json says {told:.3f}; the score file is shown")
    return Cell(percent(score.cer), span(score.interval))


def _mark_best(cells: list[Cell]) -> None:
    """The lowest of a row, where there are several."""
    values = [float(cell.text) for cell in cells if cell.text != DASH]
    if len(values) > 1:
        for place, cell in enumerate(cells):
            if cell.text != DASH and float(cell.text) == min(values):
                cells[place] = Cell(cell.text, cell.small, "best")


def pool(scores: Sequence[Score], model: str, condition: str) -> tuple[float, int] | None:
    """CER over the utterances of all sets together, and how many sets those are."""
    chosen = [score for score in scores if (score.model, score.condition) == (model, condition)]
    length = sum(score.counts["N"] for score in chosen)
    errors = sum(score.counts[key] for score in chosen for key in "SDI")
    return (100 * errors / length, len(chosen)) if length else None


def _pooled(scores: Sequence[Score], model: str, condition: str, sets: int) -> Cell:
    found = pool(scores, model, condition)
    return Cell(percent(found[0])) if found is not None and found[1] == sets else Cell(DASH)


def differences(experiment: Experiment) -> Table | None:
    """Paired differences of what was recognised in two ways from the same recordings."""
    scores = {(score.model, score.set, score.condition): score for score in experiment.scores}
    pairs = [
        ((model, "S+V"), (model, "S"), f"{name}: S+V minus S") for model, name in NAMES.items()
    ] + [(("llm_asr", condition), ("cif_asr", condition), f"{condition}: X-LLM minus CIF model") for condition in ("S", "S+V")]
    cells = {
        (name, title): _difference(scores.get((one[0], name, one[1])), scores.get((two[0], name, two[1])))
        for name in sets_of(experiment) for one, two, title in pairs
    }
    titles = [title for _, _, title in pairs if any(key[1] == title and cell is not None for key, cell in cells.items())]
    if not titles:
        return None
    table = Table("Does the image help? Differences in CER, points", ["test set", *titles])
    for name in sets_of(experiment):
        table.add(name, *(cells[name, title] or Cell(DASH) for title in titles))
    table.note = "Below 0 the first is better. Paired bootstrap over the same utterances, 95 %; bold where it leaves 0 out."
    return table


def _difference(first: Score | None, second: Score | None) -> Cell | None:
    if first is None or second is None or first.set_sha256 != second.set_sha256:
        return None
    others = {row.id: row.errors for row in second.utterances}
    if not first.utterances or others.keys() != {row.id for row in first.utterances}:
        return None
    paired = paired_bootstrap(
        [row.errors for row in first.utterances], [others[row.id] for row in first.utterances],
        [row.length for row in first.utterances],
    )
    if paired is None:
        return None
    low, high = paired.interval
    return Cell(f"{paired.difference:+.2f}", f"{low:+.2f} to\u00a0{high:+.2f}", "best" if low > 0 or high < 0 else "")


def homophones(experiment: Experiment) -> Table | None:
    """Words that sound alike, right in %, by model and condition."""
    found = {
        keys[1:]: value for keys, value in experiment.metrics.items() if keys[0] == "homophone_accuracy" and len(keys) == 3
    }
    if not found:
        return None
    pairs = [pair for pair in columns_of(experiment) if pair in found] or list(found)
    table = Table("Words that only the image tells apart: right, %", ["", *(heading(*pair[:2]) for pair in pairs)])
    cells = [Cell(percent(found[pair], 1)) for pair in pairs]
    table.add("homophones", *cells)
    table.note = "Two words sound alike and are equally frequent: without the image half of them is what a guess reaches."
    return table


def questions(experiment: Experiment) -> Table | None:
    """Questions about images and clips, beside what is reached without each medium."""
    rows = [row for row in QUESTIONS if (row[0], row[2]) in experiment.metrics]
    if not rows:
        return None
    beside = list(dict.fromkeys(name for row in rows for name in row[3]))
    table = Table("Images, clips and spoken questions: answers of the X-LLM", ["test", "X-LLM", *beside])
    for section, title, key, others in rows:
        cells = [_figure(experiment, section, key, "best" if others else "")]
        cells += [_figure(experiment, section, others[name], "muted") if name in others else Cell("") for name in beside]
        table.add(title, *cells)
    table.note = (
        "An answer is right where it equals the reference after normalisation. The other columns are baselines: the same "
        "questions with the medium left out, and the share of the most frequent answer. Below each figure its 95 % interval."
    )
    return table


def _figure(experiment: Experiment, section: str, key: str, mark: str) -> Cell:
    """A number of metrics.json with its interval."""
    return Cell(percent(experiment.metrics.get((section, key)), 1), span(experiment.intervals.get((section, key)), 1), mark)


def further(experiment: Experiment) -> Table | None:
    """What else metrics.json holds."""
    known = {(row[0], key) for row in QUESTIONS for key in (row[2], *row[3].values())}
    rest = {
        keys: value for keys, value in experiment.metrics.items() if keys[0] not in _ELSEWHERE and keys not in known
    }
    if not rest:
        return None
    table = Table("Further figures of metrics.json", ["figure", "value"])
    for keys, value in rest.items():
        table.add(" / ".join(keys).replace("_", " "), percent(value))
    return table


def judged(found: Judged) -> Table:
    """LLaVA-test: relative scores, beside the paper's Table 1."""
    summary = found.summaries["reparse"]
    names = {"conv": "conversation", "detail": "detail", "complex": "reasoning", "all": "all"}
    keys = [key for key in summary["relative"] if key != "all"] + ["all"]
    table = Table("Judged answers: score relative to the reference, %", ["", *(names.get(key, key) for key in keys)])
    intervals = {key: None if pair is None else (pair[0], pair[1]) for key, pair in summary["interval"].items()}
    table.add(found.path, *(Cell(percent(summary["relative"][key], 1), span(intervals[key], 1)) for key in keys))
    table.add("won / tied / lost", *(
        " / ".join(str(summary["outcomes"][key][part]) for part in ("win", "tie", "loss")) for key in keys
    ))
    if any(other["relative"] != summary["relative"] for other in found.summaries.values()):
        for policy, words in (("paper-1", "failures as (-1, -1)"), ("paper-2", "failures as (1, 9)")):
            table.add(words, *(percent(found.summaries[policy]["relative"][key], 1) for key in keys))
    table.add_group("the paper, Table 1 (LLaVA-test, relative to GPT-4, text only)")
    for name, row in TABLE_1.items():
        figures = dict(zip(names, row, strict=True))
        table.add(name, *(Cell(figures.get(key, DASH), mark="muted") for key in keys))
    table.note = (
        f"{summary['verdicts']} verdicts on {summary['questions']} questions; {summary['unparsed']} without scores, "
        f"{summary['reread']} read from their text. The paper counted verdicts without stored scores as (-1, -1) in its first "
        "row and as (1, 9) in the others; this file counted so stands above where that differs."
    )
    return table


def conditions(found: Conditions) -> Table:
    """The same utterances under several conditions or wordings, each beside the first, and beside a second one."""
    split = any(row.grounded is not None for row in found.rows)
    who = f"{NAMES.get(found.model, found.model)}: " if found.model else ""
    what = f"{found.worded} under every wording of the instruction" if found.worded else "conditions side by side"
    second = [f"minus {found.second}"] if found.second else []
    baseline = found.baseline if not found.worded else "the first"
    table = Table(
        f"{who}{found.set}, {what}, CER %",
        ["wording" if found.worded else "condition", "CER", f"minus {baseline}", *second,
         *(("in the caption", "not in it") if split else ())],
    )
    for row in found.rows:
        cells = [Cell(percent(row.cer), span(row.interval)), _gap(row.difference)]
        if second:
            cells.append(_gap(row.beside))
        table.add(Cell(row.name, row.title), *cells, *((percent(row.grounded), percent(row.other)) if split else ()))
    words = [
        f"{found.utterances} utterances, the same in each row; differences in points by paired bootstrap, bold where the 95 % "
        "interval leaves 0 out."
    ]
    if split:
        words.append("The last two columns: CER of words that the image's caption holds, and of the others.")
    if found.worded:
        rates = [row.cer for row in found.rows if row.cer is not None]
        words.append(f"From the best to the worst wording: {max(rates) - min(rates):.2f} points." if rates else "")
        words.append(f"All wordings agree on {percent(found.same_text, 1)} % of the utterances.")
    for why in dict.fromkeys(why for _, why in found.left_out):
        names = [name for name, reason in found.left_out if reason == why]
        words.append(f"Left out: {', '.join(names)}; {why}.")
    words += [f"{note}." for note in found.notes]
    table.note = " ".join(word for word in words if word)
    return table


def _gap(gap: Gap | None) -> Cell:
    """A paired difference, bold where its interval leaves 0 out."""
    if gap is None or gap.points is None:
        return Cell(DASH)
    low, high = gap.interval or (0.0, 0.0)
    small = f"{low:+.2f} to\u00a0{high:+.2f}" if gap.interval else ""
    return Cell(f"{gap.points:+.2f}", small, "best" if low > 0 or high < 0 else "")


SCORE_NAMES = {
    "cider": "CIDEr", "rouge_l": "ROUGE-L", "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4",
    "exact_match": "exact match", "token_f1": "token F1", "bleu": "BLEU", "chrf": "chrF",
}
_TEXT_TITLES = {"caption": "Descriptions beside their references", "answer": "Short answers beside their references"}


def texts(experiment: Experiment) -> list[Table]:
    """Files of `score --metrics`, a table for each kind; below those that were compared, the others and the difference."""
    tables = []
    for kind in dict.fromkeys(found.kind for found in experiment.texts):
        chosen = [found for found in experiment.texts if found.kind == kind]
        names = list(dict.fromkeys(name for found in chosen for name in found.scores))
        table = Table(
            f"{_TEXT_TITLES.get(kind, 'Translations beside their references')}, %",
            ["", "items", *(SCORE_NAMES.get(name, name) for name in names)],
        )
        for found in chosen:
            table.add(found.set, f"{found.items:,}", *(
                Cell(percent(found.scores.get(name), 1), span(found.intervals.get(name), 1)) for name in names
            ))
            if found.other:
                other = Path(found.other).stem.replace("_", " ")
                table.add(Cell(f"{found.set}, {other}", mark="muted"), "", *(
                    Cell(percent(found.others.get(name), 1), mark="muted") for name in names
                ))
                table.add(Cell("difference", mark="muted"), "", *(_gap(found.gaps.get(name)) for name in names))
        table.note = "Over characters in normal form; below each figure its 95 % bootstrap interval over items." + (
            " CIDEr is higher the rarer the words are that come out right; a perfect description of rare words nears 1000."
            if kind == "caption" else ""
        )
        tables.append(table)
    return tables


def decodings(experiment: Experiment) -> Table | None:
    """What stands behind the rates: counts, sentences, loops, speed."""
    if not experiment.scores:
        return None
    table = Table(
        "Behind the rates",
        ["recognised", "characters", "wrong", "missing", "too many", "sentences wrong %", "loops %", "speed"], markdown=False,
    )
    for score in sorted(experiment.scores, key=lambda score: (list(sets_of(experiment)).index(score.set), score.model)):
        counts = score.counts
        table.add(
            f"{score.set}, {heading(score.model, score.condition)}", *(f"{counts[key]:,}" for key in "NSDI"),
            percent(score.ser, 1), percent(score.loop_rate, 1), DASH if score.rtfx is None else f"{score.rtfx:.0f} ×",
        )
    forms = sorted({score.normaliser for score in experiment.scores})
    undecoded = sum(score.undecoded for score in experiment.scores)
    table.note = (
        f"Speed: seconds of audio per second. Normal form: {', '.join(forms)}. "
        f"{undecoded or 'No'} utterances could not be decoded."
    )
    return table
