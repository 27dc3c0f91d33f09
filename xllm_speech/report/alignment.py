"""How the CIF module of an experiment cuts a few utterances into units: features, weights and fire times for plots."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import Rejects
from xllm_speech.base.units import sec_from_steps
from xllm_speech.datasets.asr import AsrDataset
from xllm_speech.features.augment import hashed_fraction
from xllm_speech.infer.asr import CifAsr
from xllm_speech.manifests.cuts import CUTS_NAME, PathFinder, load_cuts, utterance_of
from xllm_speech.models.asr import SearchConfig
from xllm_speech.report.experiment import Experiment

LONGEST_SEC = 8.0  # of what is shown and embedded


@dataclass(frozen=True)
class Alignment:
    """One utterance: features fbank_TF before normalisation, weights alpha_S; per token its piece and stretch in seconds."""

    id: str
    set: str
    cut: Cut
    image: str | None
    reference: str
    text: str
    pieces: list[str]
    start_sec: list[float]
    fire_sec: list[float]
    alpha_S: np.ndarray
    fbank_TF: np.ndarray


def align_some(experiment: Experiment, count: int) -> list[Alignment]:
    """`count` utterances of the test sets in turn, drawn by their ids, decoded with the CIF ASR model of the experiment.

    What is missing or broken is noted in the experiment's problems; an utterance that cannot be read costs only itself.
    """
    model_path = _find_model(experiment)
    sources = list(_find_cuts(experiment)) if model_path is not None else []
    if model_path is None or not sources:
        return []
    model = experiment.attempt(model_path, partial(CifAsr.from_pretrained, model_path))
    if model is None:
        return []
    share = -(-count // len(sources))
    drawn = [
        [(name, cut) for cut in experiment.attempt(path, partial(_draw, path, share)) or []] for name, path in sources
    ]
    found = []
    for name, cut in [pair for row in itertools.zip_longest(*drawn) for pair in row if pair is not None][:count]:
        item = experiment.attempt(cut.id, partial(_align, model, cut, name))
        if item is not None:
            found.append(item)
    return found


def _find_model(experiment: Experiment) -> Path | None:
    """The model that the scores were decoded with, else the first of phase 1."""
    finder = PathFinder(experiment.root)
    named = [score.decoded_by for score in experiment.scores if score.model == "cif_asr" and score.decoded_by]
    places = [Path(finder.find(name, probe=True)) for name in dict.fromkeys(named)]
    places += [experiment.root / node.path for node in experiment.nodes if node.phase == 1 and node.error is None]
    return next((place for place in places if place.is_dir()), None)


def _find_cuts(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    """(test set, its cuts): beside the reference that was scored; else what a training kept of its dev set."""
    finder, seen = PathFinder(experiment.root), set()
    for score in experiment.scores:
        path = Path(finder.find(str(Path(score.reference).parent / CUTS_NAME), probe=True))
        if path not in seen and path.is_file():
            seen.add(path)
            yield score.set, path
    if not seen:
        for training in experiment.trainings:
            path = training.folder / "data" / f"dev_{CUTS_NAME}"
            if path.is_file():
                yield f"dev set of {training.path}", path


def _draw(path: Path, count: int) -> list[Cut]:
    """Utterances of a manifest by the hash of their ids, of a length that can be shown."""
    cuts = [cut for cut in load_cuts(path, Rejects()) if cut.duration <= LONGEST_SEC]
    return sorted(cuts, key=lambda cut: hashed_fraction("report", cut.id))[:count]


@torch.no_grad()
def _align(asr: CifAsr, cut: Cut, name: str) -> Alignment:
    features = asr.checkpoint.description.features
    batch = AsrDataset(None, channel=features.channel, image_size=features.image_size)[CutSet([cut])]
    if not batch.ids:
        raise DataError("; ".join(reason for _, reason in batch.skipped))
    encoded, cif = asr.model.find_units(batch.fbank)
    # The weights are those of `find_units` for every search; greedy keeps one token per unit.
    results, units = asr.model.decode(encoded, cif, *asr.model.see(batch), SearchConfig())
    tokens = results[0].tokens
    utterance = utterance_of(cut)
    return Alignment(
        cut.id, name, cut, utterance.image, utterance.text or "", asr.table.decode(tokens),
        [asr.table.piece(token) for token in tokens], _seconds(units.start_BU[0], len(tokens)),
        _seconds(units.fire_BU[0], len(tokens)), cif.alpha_BS[0].numpy(), batch.fbank.x_BTF[0].numpy(),
    )


def _seconds(steps_U: torch.Tensor, count: int) -> list[float]:
    return [sec_from_steps(step) for step in steps_U[:count].tolist()]


