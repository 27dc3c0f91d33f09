"""What the report draws: error rates with their intervals, training curves, and how CIF cuts speech into units."""

from __future__ import annotations

from typing import Any

import numpy as np

from xllm_speech.base.units import FRAME_SHIFT_MS, STEP_SEC
from xllm_speech.report.alignment import Alignment
from xllm_speech.report.costs import dev_figures
from xllm_speech.report.experiment import Experiment, Training
from xllm_speech.report.figures import GRID, INK, SERIES, Drawing
from xllm_speech.report.results import columns_of, heading, sets_of

WIDTH_IN = 4.4
# Of a row of train.log, what is no loss.
_NOT_LOSS = (
    "kind", "step", "epoch", "lr", "accuracy", "grad_norm", "audio_sec_per_sec", "items_per_sec", "step_sec", "wait_share",
)


def plot_scores(experiment: Experiment, drawing: Drawing) -> str | None:
    """CER per test set with its interval, a mark per model and condition."""
    columns, sets = columns_of(experiment), sets_of(experiment)
    scores = {(score.model, score.set, score.condition): score for score in experiment.scores if score.cer is not None}
    if not scores:
        return None
    with drawing.style(" ".join(sets)):
        figure = drawing.figure(WIDTH_IN, 1.0 + 0.45 * len(sets) + 0.18 * ((len(columns) + 1) // 2))
        axes = figure.subplots()
        for place, (model, condition) in enumerate(columns):
            keys = [(row, (model, name, condition)) for row, name in enumerate(sets)]
            found = [(row, scores[key]) for row, key in keys if key in scores]
            if not found:
                continue
            offset = (place - (len(columns) - 1) / 2) * 0.6 / max(1, len(columns))
            rates = [score.cer or 0.0 for _, score in found]
            reach = [score.interval or (score.cer, score.cer) for _, score in found]
            errors = [
                [max(0.0, rate - (low or 0.0)) for rate, (low, _) in zip(rates, reach, strict=True)],
                [max(0.0, (high or 0.0) - rate) for rate, (_, high) in zip(rates, reach, strict=True)],
            ]
            axes.errorbar(
                rates, [row + offset for row, _ in found], xerr=errors, fmt="osD^v<>p"[place % 8], markersize=4.5,
                linewidth=1.2, color=SERIES[place % len(SERIES)], capsize=2, label=heading(model, condition),
            )
        axes.set_yticks(range(len(sets)), sets)
        axes.set_ylim(len(sets) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("character error rate, %, with 95 % interval")
        figure.legend(loc="outside upper center", ncols=2)
        return drawing.svg(figure, f"Character error rates of {len(sets)} test sets with intervals, as in the table")


def plot_training(training: Training, drawing: Drawing) -> str | None:
    """Losses, dev figures and learning rate over steps, one above the other."""
    if not training.train and not training.dev:
        return None
    losses = _series(training.train, lambda row: {name: row[name] for name in row if name not in _NOT_LOSS})
    dev = _series(training.dev, dev_figures)
    rates = _series(training.train, lambda row: {"lr": row["lr"]} if "lr" in row else {})
    losses |= {f"dev {name}": dev.pop(name) for name in [name for name in dev if name in losses]}
    if len(losses) > 1 and "ce" in losses and losses["ce"] == losses.get("loss"):
        del losses["ce"]  # the loss is nothing else
    panels = [(title, series) for title, series in (("loss", losses), ("dev, %", dev), ("learning rate", rates)) if series]
    if not panels:
        return None
    with drawing.style():
        heights = [0.55 if title == "learning rate" else 1.0 for title, _ in panels]
        legends = sum(-(-len(series) // _columns(series)) for title, series in panels if title != "learning rate")
        figure = drawing.figure(WIDTH_IN, 0.5 + 1.45 * sum(heights) + 0.2 * legends)
        rows = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (title, series) in zip(rows, panels, strict=True):
            for place, (name, (steps, values)) in enumerate(series.items()):
                axes.plot(
                    steps, values, color=SERIES[place % len(SERIES)], linewidth=1.4, label=name.replace("_", " "),
                    marker="o" if len(steps) < 12 else None, markersize=3,
                )
            axes.set_ylabel(title)
            reach = [value for _, values in series.values() for value in values]
            axes.set_ylim(min(0.0, *reach), max(*reach, 1e-12) * 1.06)
            if title == "learning rate":
                axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=False)
                axes.yaxis.get_offset_text().set_fontsize(7)
            else:
                axes.legend(
                    loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=_columns(series), borderaxespad=0.2, handlelength=1.4,
                    columnspacing=1.2,
                )
        rows[-1].set_xlabel("optimiser step")
        return drawing.svg(figure, f"Training curves of {training.path}: {', '.join(title for title, _ in panels)}")


def _columns(series: dict[str, Any]) -> int:
    """Of a legend, so that it is no wider than its axes."""
    return 3 if max(map(len, series)) < 13 else 2


def _series(rows: list[dict[str, Any]], choose: Any) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (steps, values) of what is a finite number."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, value in choose(row).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(float(value))
    return found


def plot_alignment(item: Alignment, drawing: Drawing) -> str:
    """Spectrogram with the tokens over the stretches they were read from; below it alpha, its running sum, and the fires."""
    pieces = [piece.replace("▁", " ").strip() or "·" for piece in item.pieces]  # a SentencePiece space is no letter
    text = "".join(pieces)
    with drawing.style(text):
        figure = drawing.figure(max(WIDTH_IN, 0.24 * len(item.pieces) + 1.0), 3.3)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.25, 1.0])
        seconds = len(item.fbank_TF) * FRAME_SHIFT_MS / 1000
        low, high = np.percentile(item.fbank_TF, [2, 99.5])
        top.imshow(
            item.fbank_TF.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest",
            extent=(0.0, seconds, 0.0, float(item.fbank_TF.shape[1])),
        )
        top.grid(visible=False)
        top.set_ylabel("mel bin")
        for axes, colour in ((top, "#ffffff"), (bottom, INK)):
            for fire in item.fire_sec:
                axes.axvline(fire, color=colour, linewidth=0.8, alpha=0.7, linestyle=(0, (3, 2)))
        for place, (piece, start, fire) in enumerate(zip(pieces, item.start_sec, item.fire_sec, strict=True)):
            # Neighbours that would touch stand on two lines.
            tight = (fire - start) / seconds * WIDTH_IN < 0.16 or len(piece) > 2
            top.annotate(
                piece, ((start + fire) / 2, 1.0), xycoords=("data", "axes fraction"), textcoords="offset points",
                xytext=(0, 3 + 11 * (tight and place % 2)), ha="center", va="bottom", fontsize=10, annotation_clip=False,
            )
        times_S = np.arange(len(item.alpha_S)) * STEP_SEC
        bottom.bar(times_S, item.alpha_S, width=STEP_SEC, align="edge", color=SERIES[0], alpha=0.55, label="alpha per step")
        bottom.plot(*running_sum(item), color=SERIES[1], linewidth=1.2, label="its sum since the last fire")
        bottom.axhline(1.0, color=GRID, linewidth=0.8)
        bottom.set_ylim(0, 1.12)
        bottom.set_xlim(0, seconds)
        bottom.set_xlabel("seconds")
        figure.legend(handles=bottom.get_legend_handles_labels()[0][::-1], loc="outside lower center", ncols=2)
        return drawing.svg(figure, f"Spectrogram and integrate-and-fire of {item.id}: {len(item.pieces)} tokens, {text}")


def running_sum(item: Alignment) -> tuple[list[float], list[float]]:
    """(seconds, weight since the last fire): rises as alpha is spent over its step, falls to 0 at every fire."""
    edges = np.arange(len(item.alpha_S) + 1) * STEP_SEC
    total = np.concatenate([[0.0], np.cumsum(item.alpha_S)])
    points = sorted({*edges.tolist(), *item.fire_sec})
    times, sums, base = [], [], 0.0
    for moment in points:
        value = float(np.interp(moment, edges, total))
        times.append(moment)
        sums.append(value - base)
        if moment in item.fire_sec:
            base = value
            times.append(moment)
            sums.append(0.0)
    return times, sums
