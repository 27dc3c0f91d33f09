"""The recipes of the real corpora in folders of their own, run on miniatures with tiny models."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# The CIF ASR model of both, for a recipe's folder.
ASR = """base: {recipe}/conf/asr.yaml
model:
  encoder: {{channels: 4, width: 16, heads: 2, feedforward: 24, kernel: 5, blocks: 2, pool_after: [1, 2]}}
  cif: {{channels: 8}}
  decoder: {{heads: 2, feedforward: 24, blocks: 2, visual_blocks: [1], linguistic_blocks: [2]}}
data: {{num_workers: 0, num_buckets: 2, max_cuts: 4}}
train: {{max_steps: 4, save_every: 2, eval_every: 4, num_threads: 1, precision: "32"}}
"""


def copy_recipe(top: Path, house: Path, name: str) -> Path:
    """The recipe in a folder of its own, beside the toolkit's shared scripts."""
    for part in ("utils", "local", "conf", "xllm_speech"):
        (house / part).symlink_to(top / part)
    ignore = shutil.ignore_patterns("data", "dump", "exp", "exp.*", "downloads", "weights", "__pycache__")
    shutil.copytree(top / "egs" / name, house / "egs" / name, ignore=ignore)
    return house / "egs" / name


def _environment() -> dict[str, str]:
    return {**os.environ, "XLLM_ENV": "none", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """run.sh in the environment of the tests."""
    return subprocess.run(
        [str(recipe / "run.sh"), *words], capture_output=True, text=True, timeout=1500, check=False, env=_environment()
    )


def start(recipe: Path, *words: str) -> subprocess.Popen[str]:
    """run.sh begun, both outputs in one stream; `interrupt` ends it."""
    return subprocess.Popen(
        [str(recipe / "run.sh"), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(),
        start_new_session=True,
    )


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C: the signal goes to everything that the script has started."""
    os.killpg(process.pid, signal.SIGINT)
