"""The tables of what was trained, what it cost, what stands on what, and where it ran."""

from __future__ import annotations

from typing import Any

from xllm_speech.base.header import run_header
from xllm_speech.infer.phase_tree import SHORT, Link, Node
from xllm_speech.report.experiment import Experiment, Training
from xllm_speech.report.tables import DASH, Cell, Table, count, percent

PHASES = {0: "frozen parts", 1: "phase 1, convert", 2: "phase 2, align", 3: "phase 3, integrate"}
# Of a header, what says where something ran, in the order of the table.
_ENVIRONMENT = (
    "xllm_speech", "commit", "python", "torch", "transformers", "lhotse", "system", "cores", "device", "processes", "threads",
    "precision", "seed",
)


def cost_tables(experiment: Experiment) -> list[Table]:
    """Cost by phase and by stage."""
    return [table for table in (phases(experiment), stages(experiment)) if table is not None]


def phases(experiment: Experiment) -> Table | None:
    """Steps, time and parameters of every model, by phase, with sums."""
    trained = [node for node in experiment.nodes if node.error is None]
    if not trained:
        return None
    table = Table("Cost by phase", ["model", "parameters trained", "frozen", "steps", "minutes", "core minutes"])
    for phase, title in PHASES.items():
        members = [node for node in trained if node.phase == phase]
        if members:
            table.add_group(title)
        for node in members:
            own = node.trained if node.phase or node.steps else None
            table.add(
                f"{node.path} ({describe(node)})", count(own), count(node.frozen if node.phase or own is None else 0),
                count(node.steps), _minutes(node.wall_sec), _minutes(node.core_sec),
            )
    table.add_group("together")
    table.add(
        "all trainings", "", "", count(sum(node.steps or 0 for node in trained)),
        _minutes(sum(node.wall_sec or 0 for node in trained)), _minutes(sum(node.core_sec or 0 for node in trained)),
    )
    table.note = "Minutes of optimiser steps, evaluations and checkpoints apart; core minutes: times threads and processes."
    return table


def describe(node: Node) -> str:
    """What a model is, with its kinds of media."""
    return f"{node.what}: {', '.join(node.kinds)}" if node.kinds else node.what


def stages(experiment: Experiment) -> Table | None:
    """Minutes per stage of the recipe."""
    if not experiment.stages:
        return None
    table = Table("Cost by stage", ["stage", "", "minutes"], words=(0, 1))
    for stage in experiment.stages:
        minutes = Cell("not run", mark="muted") if stage.minutes is None else Cell(percent(stage.minutes))
        table.add(str(stage.number), stage.title, minutes)
    table.add("", Cell("all", mark="best"), Cell(percent(sum(stage.minutes or 0 for stage in experiment.stages)), mark="best"))
    table.note = "Wall time of each stage's last run."
    return table


def trainings(experiment: Experiment) -> Table | None:
    """One line per training: where it stands and its last figures on the dev set."""
    if not experiment.trainings:
        return None
    table = Table("Trainings", ["training", "task", "step", "of", "loss", "last on the dev set"], words=(0, 1, 5))
    for training in experiment.trainings:
        total = training.header.get("settings", {}).get("train", {}).get("max_steps")
        last = training.train[-1] if training.train else {}
        dev = training.dev[-1] if training.dev else {}
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in dev_figures(dev).items())
        state = "" if training.finished else "not finished"
        skipped = f"{training.skipped} steps skipped" if training.skipped else ""
        table.add(
            training.path, Cell(training.task, "; ".join(filter(None, (state, skipped)))), count(last.get("step")),
            count(total) if isinstance(total, int) and total else DASH, percent(last.get("loss"), 3), shown or DASH,
        )
    return table


def dev_figures(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a dev row, less those that say where it stands."""
    return {
        name: float(value) for name, value in row.items()
        if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool)
    }


def environment(experiment: Experiment) -> Table:
    """Versions, machine and seeds of every training, and of this report."""
    headers: list[tuple[str, dict[str, Any]]] = [(training.path, training.header) for training in experiment.trainings]
    headers.append(("this report", run_header()))
    table = Table("Environment", ["", "value"], words=(0, 1), markdown=False)
    for key in _ENVIRONMENT:
        found: dict[str, list[str]] = {}
        for name, header in headers:
            if header.get(key) is not None:
                found.setdefault(str(header[key]), []).append(name)
        if not found:
            continue
        values = [value if len(found) == 1 else f"{value} ({', '.join(names)})" for value, names in found.items()]
        table.add(key.replace("_", "-"), "; ".join(values))
    for training in experiment.trainings:
        if command := command_of(training):
            table.add(f"command of {training.path}", command)
    return table


def command_of(training: Training) -> str:
    """The command line as it was typed."""
    command = training.header.get("command")
    return " ".join(map(str, command)) if isinstance(command, list) else ""


def tree(experiment: Experiment) -> Table | None:
    """Every model with its hash, and below it what it stands on, then and now."""
    if not experiment.nodes:
        return None
    table = Table("What stands on what", ["model", "SHA-256", "state"], words=(0, 1, 2), markdown=False)
    for phase, title in PHASES.items():
        members = [node for node in experiment.nodes if node.phase == phase]
        if members:
            table.add_group(title)
        for node in members:
            state = Cell("") if node.error is None else Cell("cannot be read", node.error, "bad")
            table.add(Cell(node.path, describe(node)), node.sha256[:SHORT] or DASH, state)
            for link in node.parents:
                table.add(Cell(f"└ {link.part}", link.path, "muted"), link.sha256[:SHORT] or DASH, _state(link))
    return table


def _state(link: Link) -> Cell:
    match link.state:
        case "changed":
            return Cell("changed", f"is {link.found_sha256[:SHORT]} now", "bad")
        case "missing":
            return Cell("missing", mark="bad")
        case _:
            return Cell("same")


def _minutes(seconds: float | None) -> str:
    return DASH if seconds is None else f"{seconds / 60:.1f}"
