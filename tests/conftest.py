"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A suite started in the background of a script inherits an ignored SIGINT, and so would every process that it starts.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TOP = Path(__file__).resolve().parents[1]
if str(TOP / "tests") not in sys.path:  # for `tiny`
    sys.path.insert(0, str(TOP / "tests"))


@pytest.fixture(scope="session")
def top() -> Path:
    """Root of the checkout."""
    return TOP


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings, pictures and reference vectors: $XLLM_TEST_DATA or `../shared/data`."""
    path = Path(os.environ.get("XLLM_TEST_DATA", TOP.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real test data at {path}; set XLLM_TEST_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Frozen parts, media and manifests for phases 2 and 3 (`tiny.World`); shared by all tests, so not to be changed."""
    from tiny import make_world

    return make_world(tmp_path_factory.mktemp("world"))
