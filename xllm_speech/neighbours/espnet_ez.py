"""ESPnet-EZ with our task in it, and Kaldi data directories as its data sets."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xllm_speech.base.errors import DataError, MissingDependency
from xllm_speech.base.rejects import Rejects
from xllm_speech.features.audio import MIX, load_samples
from xllm_speech.manifests.kaldi import read_kaldi_dir
from xllm_speech.text.tokens import TokenTable

TASK = "cif_asr"
# ESPnet-EZ imports every task of ESPnet, and so what only enhancement, singing and TTS need. These have no wheels, or none
# that this environment can hold; where one is absent, an empty stand-in takes its place during the import.
ELSEWHERE = ("ci_sdr", "pyworld", "asteroid_filterbanks", "six")


class _StandIn(types.ModuleType):
    """A module whose every name is a class that says what is missing when it is used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> None:
            raise MissingDependency(f"this part of ESPnet needs {self.__name__}: pip install {self.__name__}")

        return type(name, (), {"__init__": refuse})


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    absent = [name for name in ELSEWHERE if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = _StandIn(name)
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def import_espnetez() -> Any:
    """The module `espnetez`, which knows the task `cif_asr`: `ez = import_espnetez(); ez.Trainer("cif_asr", ...)`.

    Raises:
        MissingDependency: ESPnet is not installed.
    """
    from xllm_speech.neighbours.espnet import CifAsrTask

    try:
        with _stand_ins():
            import espnetez
            import espnetez.dataset
            import espnetez.task
    except ImportError as error:
        raise MissingDependency(f"ESPnet-EZ cannot be imported ({error}); pip install 'xllm-speech[espnet]'") from error
    espnetez.task.TASK_CLASSES[TASK] = CifAsrTask
    return espnetez


def kaldi_dataset(directory: str | Path, table: TokenTable, channel: str | int = MIX) -> Any:
    """An `ESPnetEZDataset` over a Kaldi data directory: any rate, segments, pipes, archives; 16 kHz samples and token ids.

    Raises:
        DataError: not a data directory, or an utterance in it cannot be used; names the first.
    """
    ez = import_espnetez()
    rejects = Rejects()
    cuts = list(read_kaldi_dir(directory, rejects))
    if rejects.rows or not cuts:
        first = f"first {rejects.rows[0]['id']}: {rejects.rows[0]['reason']}" if rejects.rows else "it is empty"
        raise DataError(f"{directory}: {len(rejects.rows)} utterances cannot be used, {first}")

    def speech(cut: Any) -> np.ndarray:
        return load_samples(cut, channel)

    def text(cut: Any) -> np.ndarray:
        return np.array(table.encode(cut.supervisions[0].text), dtype=np.int64)

    return ez.dataset.ESPnetEZDataset(cuts, data_info={"speech": speech, "text": text})
