"""Opening everything a manifest names, so that surprises come before the training and not in it."""

from __future__ import annotations

from collections.abc import Iterable

from lhotse.cut import Cut

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.base.rejects import Rejects
from xllm_speech.features.audio import audio_path
from xllm_speech.features.fbank import load_features
from xllm_speech.features.images import load_pixels
from xllm_speech.manifests.cuts import map_in_threads, utterance_of

# Pictures are decoded whole; the size they are brought to does not matter here.
PIXELS = 16


def check_cuts(cuts: Iterable[Cut], rejects: Rejects, jobs: int = 4) -> int:
    """Decode the audio (or stored features) and the picture of every cut, `jobs` at a time; returns how many there were.

    What cannot be read is added to `rejects`, as are ids that occur twice; each cut at most once.
    """
    seen: set[str] = set()
    total = 0
    for cut, problem in map_in_threads(_find_problem, cuts, jobs, window=64):
        total += 1
        if cut.id in seen:
            rejects.add(cut.id, audio_path(cut), "an utterance id occurs twice", "duplicate-id")
        elif problem is not None:
            rejects.add(cut.id, *problem)
        seen.add(cut.id)
    return total


def _find_problem(cut: Cut) -> tuple[str, str, str] | None:
    """(path, reason, kind) of the first thing wrong with a cut."""
    try:
        utterance = utterance_of(cut)
    except (DataError, SeamError, ValueError) as error:
        return audio_path(cut), str(error), "bad-cut"
    try:
        load_features(cut)
    except DataError as error:
        return audio_path(cut), str(error), "unreadable-audio"
    if utterance.image is not None:
        try:
            load_pixels(utterance.image, PIXELS)
        except DataError as error:
            return utterance.image, str(error), "unreadable-picture"
    return None
