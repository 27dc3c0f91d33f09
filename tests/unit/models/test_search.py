"""Options become a search, or a word on what does not go together."""

from __future__ import annotations

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.models.search import describe_search, make_search
from xllm_speech.text.tokens import TokenTable


def test_options_become_a_search_that_can_be_described(tmp_path):
    table = TokenTable.train(["天地玄黄"], "char")
    (tmp_path / "words").write_text("天地\n")
    search = make_search(table, "ctc", 7, length_bonus=0.5, hotwords=tmp_path / "words", hotword_bonus=2)
    described = describe_search(search)
    assert (described["search"], described["beam"], described["length_bonus"]) == ("ctc", 7, 0.5)
    assert described["fusion"].startswith("1 hotwords (")
    assert describe_search(make_search(table))["fusion"] is None


@pytest.mark.parametrize(("method", "lm", "lexicon", "hotwords"), [
    ("graph", None, "l", None), ("graph", "a", None, None), ("graph", "a", "l", "h"), ("beam", None, "l", None),
    ("graph-k2", None, "l", None), ("graph-k2", "a", None, None),
])
def test_what_does_not_go_together_is_refused(method, lm, lexicon, hotwords):
    with pytest.raises(ConfigError, match=f"search {method}: a lexicon goes with the graph search"):
        make_search(TokenTable.train(["天"], "char"), method, lm=lm, lexicon=lexicon, hotwords=hotwords)


def test_k2_needs_no_graph_and_takes_no_hotwords(tmp_path):
    table = TokenTable.train(["天地玄黄"], "char")
    assert make_search(table, "graph-k2").graph is None
    (tmp_path / "words").write_text("天地\n")
    with pytest.raises(ConfigError, match=r"search.method graph-k2 takes no n-gram model of tokens and no hotwords"):
        make_search(table, "graph-k2", hotwords=tmp_path / "words")
