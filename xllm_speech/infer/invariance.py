"""Does padding or company change what a model says? Every utterance alone against batches of other lengths and orders."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from xllm_speech.base.errors import DataError
from xllm_speech.datasets.asr import AsrDataset
from xllm_speech.manifests.cuts import load_cuts
from xllm_speech.models.asr import SearchConfig
from xllm_speech.models.checkpoints import AsrCheckpoint
from xllm_speech.records import AsrBatch, FbankBatch, PixelBatch

# Rounding differs between a row of a large product and the same row alone; texts must not.
ENCODER_TOLERANCE = 1e-3
BATCH = 8


def check_invariance(
    checkpoint: AsrCheckpoint, methods: list[str], cuts: Path | None, utterances: int, device: torch.device | str
) -> dict[str, Any]:
    """Compare encoder output, number of units and text of every utterance alone and in batches.

    Batches are drawn in the given order, by length, and shuffled, eight at a time. Returns the report that
    `xllm-speech check invariance` prints; `invariant` is its verdict.
    """
    singles = _made_up(utterances) if cuts is None else _from_cuts(checkpoint, cuts, utterances)
    singles = [single.to(device) for single in singles]
    model = checkpoint.model
    searches = {name: SearchConfig(method=name) for name in methods}
    with torch.no_grad():
        encoded = [model.encode(single.fbank).x_BSD[0] for single in singles]
        alone = {name: [_texts(checkpoint, single, search)[0] for single in singles] for name, search in searches.items()}
        units = [int(model.find_units(single.fbank)[1].lens_B) for single in singles]
        worst, changed_units, count = 0.0, set(), 0
        changed: dict[str, set[str]] = {name: set() for name in methods}
        for order in _orders(singles):
            for group in _groups(order):
                joined, count = _join([singles[place] for place in group]), count + 1
                out = model.encode(joined.fbank)
                cif = model.find_units(joined.fbank)[1]
                texts = {name: _texts(checkpoint, joined, search) for name, search in searches.items()}
                for row, place in enumerate(group):
                    steps = encoded[place].shape[0]
                    worst = max(worst, float((out.x_BSD[row, :steps] - encoded[place]).abs().max()))
                    if int(cif.lens_B[row]) != units[place]:
                        changed_units.add(place)
                    for name in methods:
                        if texts[name][row] != alone[name][place]:
                            changed[name].add(singles[place].ids[0])
    quiet = not changed_units and not any(changed.values())
    return {
        "utterances": len(singles), "batches": count, "encoder_difference": worst, "changed_units": len(changed_units),
        "changed_texts": {name: sorted(ids) for name, ids in changed.items()},
        "invariant": quiet and worst <= ENCODER_TOLERANCE,
    }


def _texts(checkpoint: AsrCheckpoint, batch: AsrBatch, search: SearchConfig) -> list[str]:
    results, _ = checkpoint.model.recognise(batch, search)
    return [checkpoint.table.decode(result.tokens) for result in results]


def _orders(singles: list[AsrBatch]) -> list[list[int]]:
    given = list(range(len(singles)))
    by_length = sorted(given, key=lambda place: singles[place].fbank.x_BTF.shape[1])
    shuffled = torch.randperm(len(singles), generator=torch.Generator().manual_seed(0)).tolist()
    return [given, by_length, shuffled]


def _groups(order: list[int]) -> list[tuple[int, ...]]:
    return [tuple(order[begin : begin + BATCH]) for begin in range(0, len(order), BATCH)]


def _made_up(utterances: int) -> list[AsrBatch]:
    """Utterances of 0.1 to 8 s whose features wander like speech does."""
    generator = torch.Generator().manual_seed(0)
    singles = []
    for number in range(utterances):
        frames = int(torch.randint(10, 800, (1,), generator=generator))
        x_TF = torch.randn(frames, 80, generator=generator).cumsum(0) / 4 + 10
        singles.append(AsrBatch([f"made-up-{number}"], FbankBatch(x_TF[None], torch.tensor([frames])), frames / 100))
    return singles


def _from_cuts(checkpoint: AsrCheckpoint, path: Path, utterances: int) -> list[AsrBatch]:
    features = checkpoint.description.features
    dataset = AsrDataset(None, features.channel, features.image_size)
    cuts = load_cuts(path / "cuts.jsonl.gz" if path.is_dir() else path)
    singles = [dataset[CutSet([cut])] for cut in itertools.islice(cuts, utterances)]
    singles = [single for single in singles if single.ids]
    if not singles:
        raise DataError(f"{path}: no utterance that can be read")
    return singles


def _join(singles: list[AsrBatch]) -> AsrBatch:
    lens_B = torch.cat([single.fbank.lens_B for single in singles])
    x_BTF = torch.nn.utils.rnn.pad_sequence([single.fbank.x_BTF[0] for single in singles], batch_first=True)
    pixels = None
    pictures = [single.pixels for single in singles]
    if any(picture is not None for picture in pictures):
        blank = next(torch.zeros_like(picture.x_BCHW) for picture in pictures if picture is not None)
        pixels = PixelBatch(
            torch.cat([blank if picture is None else picture.x_BCHW for picture in pictures]),
            torch.tensor([picture is not None for picture in pictures], device=lens_B.device),
        )
    captions = [single.captions[0] if single.captions else "" for single in singles]
    return AsrBatch(
        [single.ids[0] for single in singles], FbankBatch(x_BTF, lens_B), sum(single.seconds for single in singles),
        pixels=pixels, captions=captions if any(captions) else [],
    )
