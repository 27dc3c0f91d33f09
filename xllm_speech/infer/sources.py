"""Where speech to be recognised comes from: loose files, standard input, lhotse cuts, a Kaldi data directory."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.base.rejects import Rejects
from xllm_speech.manifests.cuts import load_cuts
from xllm_speech.manifests.kaldi import read_kaldi_dir
from xllm_speech.records import Hypothesis

CUTS_NAME = "cuts.jsonl.gz"


@contextlib.contextmanager
def open_speech(audio: Sequence[str], cuts: Path | None, kaldi: Path | None) -> Iterator[Iterator[Any]]:
    """Entries for `CifAsr.stream`: paths, cuts, and hypotheses with an `error` for what a manifest got wrong.

    Raises:
        ConfigError: none of the three sources is given, or more than one.
        DataError: the manifest or directory is absent.
    """
    given = [bool(audio), cuts is not None, kaldi is not None]
    if sum(given) != 1:
        raise ConfigError("give speech in exactly one way: audio files, --cuts FILE or --kaldi DIR")
    with contextlib.ExitStack() as stack:
        if cuts is not None:
            yield _from_cuts(cuts)
        elif kaldi is not None:
            yield _from_kaldi(kaldi)
        else:
            yield iter([stack.enter_context(_standard_input()) if name == "-" else name for name in audio])


def _from_cuts(path: Path) -> Iterator[Any]:
    path = path / CUTS_NAME if path.is_dir() else path
    rejects = Rejects()
    yield from load_cuts(path, rejects)
    yield from _failures(rejects)


def _from_kaldi(path: Path) -> Iterator[Any]:
    rejects = Rejects()
    yield from read_kaldi_dir(path, rejects, need_text=False)
    yield from _failures(rejects)


def _failures(rejects: Rejects) -> Iterator[Hypothesis]:
    for row in rejects.rows:
        yield Hypothesis(row["id"], "", recording=row["path"], error=row["reason"])


@contextlib.contextmanager
def _standard_input() -> Iterator[str]:
    """Standard input as a temporary file, for containers that need to seek; named stdin in the output."""
    content = sys.stdin.buffer.read()
    if not content:
        raise DataError("standard input: no audio arrived")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.wav"
        path.write_bytes(content)
        yield str(path)
