"""Speech from whatever form the user has it in."""

from __future__ import annotations

from pathlib import Path

from lhotse import CutSet

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.manifests.cuts import CUTS_NAME, REJECTED_NAME, load_cuts
from xllm_speech.manifests.kaldi import is_kaldi_dir, prepare_kaldi


def resolve_speech_data(
    path: str | Path, work_dir: str | Path, max_rejected: float = DEFAULT_MAX_SHARE, need_text: bool = True,
    rejects: Rejects | None = None,
) -> CutSet:
    """Speech from whatever the user has: a cuts file, a folder with `cuts.jsonl.gz`, or a Kaldi data directory.

    A Kaldi directory is prepared into `work_dir` (cuts.jsonl.gz, rejected.jsonl). What is wrong is also added to
    `rejects` when given: then the caller judges the share; otherwise more than `max_rejected` raises here.

    Raises:
        DataError: none of the three; too much rejected.
    """
    path = Path(path)
    if path.is_file():
        return load_cuts(path, rejects)
    for name in (CUTS_NAME, "cuts.jsonl"):
        if (path / name).is_file():
            return load_cuts(path / name, rejects)
    if is_kaldi_dir(path):
        prepare_kaldi(path, work_dir, max_rejected if rejects is None else 1.0, need_text)
        if rejects is not None:
            rejects.rows.extend(row for _, row in read_jsonl(Path(work_dir) / REJECTED_NAME))
        return load_cuts(Path(work_dir) / CUTS_NAME, rejects)
    what = "holds neither cuts.jsonl.gz nor Kaldi's wav.scp or feats.scp" if path.is_dir() else "no such file or folder"
    raise DataError(f"{path}: {what}")
