"""Importing ESPnet2 without its reach for the network: its text modules fetch word lists for English TTS when imported."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """nltk fetches nothing meanwhile; what needs the word lists says so when it is used, as it does without a network."""
    if importlib.util.find_spec("nltk") is None:
        yield
        return
    import nltk

    original = nltk.download

    def refuse(*_: Any, **__: Any) -> bool:
        return False

    nltk.download = refuse
    try:
        yield
    finally:
        nltk.download = original
