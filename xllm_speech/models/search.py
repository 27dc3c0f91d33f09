"""From a command line's words to a `SearchConfig` for one model."""

from __future__ import annotations

from pathlib import Path

from xllm_speech.base.config import require
from xllm_speech.models.asr import SearchConfig
from xllm_speech.models.fusion import HOTWORD_BONUS, LM_WEIGHT, build_fusion
from xllm_speech.models.graph import load_graph
from xllm_speech.text.tokens import TokenTable


def make_search(
    table: TokenTable,
    method: str = "greedy",
    beam: int = 5,
    ctc_weight: float = 0.3,
    passes: int = 1,
    length_bonus: float = 0.0,
    lm: str | Path | None = None,
    lm_weight: float = LM_WEIGHT,
    hotwords: str | Path | None = None,
    hotword_bonus: float = HOTWORD_BONUS,
    lexicon: str | Path | None = None,
) -> SearchConfig:
    """A search with the files it needs.

    Args:
        lm: an n-gram model, of the table's tokens or, for the graph search, of the lexicon's words. lexicon: for `graph` and
            `graph-k2`; the latter does without both too.
            The others are as in `SearchConfig` and `models.fusion.build_fusion`.

    Raises:
        ConfigError: options that do not go together. DataError: a file is absent or broken.
    """
    words = method == "graph" or (method == "graph-k2" and (lexicon is not None or lm is not None))
    require(
        (lexicon is not None and lm is not None and hotwords is None) if words else lexicon is None,
        f"search {method}: a lexicon goes with the graph search, which needs a word n-gram model too and takes no hotwords",
    )
    if words and lexicon is not None and lm is not None:
        return SearchConfig(method, graph=load_graph(table, lexicon, lm, lm_weight))
    fusion = build_fusion(table, lm, lm_weight, hotwords, hotword_bonus)
    return SearchConfig(method, beam, ctc_weight, passes, length_bonus, fusion)


def describe_search(search: SearchConfig) -> dict[str, object]:
    """What a record of a run says of its search: plain values, and where the files came from."""
    plain = {name: value for name, value in vars(search).items() if name not in ("method", "fusion", "graph")}
    source = search.graph.source if search.graph is not None else search.fusion.source if search.fusion is not None else None
    return {"search": search.method} | plain | {"fusion": source}
