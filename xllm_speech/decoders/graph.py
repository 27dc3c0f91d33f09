"""Graph search: CTC over a lexicon of words and a word n-gram model, compiled into one graph (Miao et al. 2015, EESEN).

L is the lexicon as a trie of tokens, G the n-gram model with back-off arcs, their composition is made by kaldifst and then
spread out over CTC's topology H: a token may stay for several steps, blanks may stand anywhere, and a token that is
written twice needs one between. Tokens have label id + 1 in the graph, words their place in the list + 1; 0 is silent.
Texts are searched by kaldi-decoder on a CPU or, where k2 is installed, in batches on a GPU (`decoders.k2_paths`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from xllm_speech.base.errors import DataError, MissingDependency
from xllm_speech.decoders.ngram import BEGIN, END, LOG_10, UNKNOWN

SILENT = 0


@dataclass(frozen=True)
class GraphResult:
    """words; score: natural log, of the best path with the language model; tokens: one for each step, blanks included."""

    words: list[str]
    score: float
    tokens: list[int]


@dataclass(frozen=True)
class SearchGraph:
    """fst: kaldifst's HLG. lg: the same before H, for k2. words: by label - 1. tokens: of the model, blank included.

    source: where it came from, for the record of a run. compiled: k2's HLG by device, once it was made.
    """

    fst: Any
    lg: Any
    words: list[str]
    tokens: int
    source: str = ""
    compiled: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


def build_graph(
    lexicon: Mapping[str, Sequence[Sequence[int]]],
    grams: Sequence[Mapping[tuple[str, ...], tuple[float, float]]],
    tokens: int,
    lm_weight: float = 1.0,
    blank_id: int = 0,
) -> SearchGraph:
    """Compile a graph.

    Args:
        lexicon: each word's spellings in token ids. grams: from `ngram.read_arpa`; a word without a spelling cannot be written,
            one without a unigram is left out. tokens: of the model. lm_weight: of the model's natural log probabilities.

    Raises:
        DataError: an empty spelling, or no word that both know. MissingDependency: kaldifst is not installed.
    """
    kaldifst = _import_kaldifst()
    words = sorted(word for word in lexicon if (word,) in grams[0] and word not in (BEGIN, END, UNKNOWN))
    if not words:
        raise DataError(f"graph: none of the lexicon's {len(lexicon)} words is in the language model")
    for word in words:
        for spelling in lexicon[word]:
            if not spelling or not all(0 <= token < tokens and token != blank_id for token in spelling):
                raise DataError(f"graph: `{word}` has the spelling {list(spelling)}; expected ids of 1..{tokens - 1}")
    trie, grammar = _compile_lexicon(kaldifst, lexicon, words), _compile_grammar(kaldifst, grams, words, lm_weight)
    kaldifst.arcsort(trie, sort_type="olabel")
    kaldifst.arcsort(grammar, sort_type="ilabel")
    lg = kaldifst.compose(trie, grammar)
    kaldifst.connect(lg)
    if lg.start < 0:
        raise DataError("graph: the language model has no sentence of the lexicon's words")
    return SearchGraph(_spread(kaldifst, lg, blank_id), lg, words, tokens)


def _import_kaldifst() -> Any:
    try:
        import kaldifst
    except ImportError as error:
        raise MissingDependency(
            "graph search needs kaldifst and kaldi-decoder: `.venv/bin/python -m pip install kaldifst kaldi-decoder`"
        ) from error
    return kaldifst


def _compile_lexicon(kaldifst: Any, lexicon: Mapping[str, Sequence[Sequence[int]]], words: list[str]) -> Any:
    """A trie of spellings; where a word ends a silent arc writes it and goes back to the root."""
    fst = kaldifst.StdVectorFst()
    root = fst.add_state()
    fst.start = root
    fst.set_final(root, 0.0)
    children: dict[tuple[int, int], int] = {}
    for label, word in enumerate(words, 1):
        for spelling in lexicon[word]:
            node = root
            for token in spelling:
                if (node, token) not in children:
                    children[node, token] = fst.add_state()
                    fst.add_arc(node, kaldifst.StdArc(token + 1, SILENT, 0.0, children[node, token]))
                node = children[node, token]
            fst.add_arc(node, kaldifst.StdArc(SILENT, label, 0.0, root))
    return fst


def _compile_grammar(
    kaldifst: Any, grams: Sequence[Mapping[tuple[str, ...], tuple[float, float]]], words: list[str], lm_weight: float
) -> Any:
    """A state for each context; silent arcs back off to the next shorter one."""
    labels = {word: label for label, word in enumerate(words, 1)}
    fst = kaldifst.StdVectorFst()
    states: dict[tuple[str, ...], int] = {}
    known = [set(table) for table in grams]

    def find(context: tuple[str, ...]) -> int:
        """The state of the longest suffix that the model knows as a context."""
        while context and (len(context) >= len(grams) or context not in known[len(context) - 1]):
            context = context[1:]
        if context not in states:
            states[context] = fst.add_state()
        return states[context]

    fst.start = find((BEGIN,))
    for table in grams:
        for gram, (probability, weight) in table.items():
            if any(word not in labels and word not in (BEGIN, END) for word in gram):
                continue
            cost = -lm_weight * LOG_10 * probability
            source = find(gram[:-1])
            if gram[-1] == END:
                fst.set_final(source, cost)
            elif gram[-1] != BEGIN:
                fst.add_arc(source, kaldifst.StdArc(labels[gram[-1]], labels[gram[-1]], cost, find(gram)))
            if len(gram) < len(grams) and gram[-1] != END:
                fst.add_arc(find(gram), kaldifst.StdArc(SILENT, SILENT, -lm_weight * LOG_10 * weight, find(gram[1:])))
    return fst


def _spread(kaldifst: Any, lg: Any, blank_id: int) -> Any:
    """H o LG: a state of the result is one of LG with the label heard last, or with blank."""
    fst = kaldifst.StdVectorFst()
    blank = blank_id + 1
    states: dict[tuple[int, int], int] = {}
    waiting: list[tuple[int, int]] = []

    def find(state: int, last: int) -> int:
        if (state, last) not in states:
            states[state, last] = fst.add_state()
            waiting.append((state, last))
        return states[state, last]

    fst.start = find(lg.start, blank)
    while waiting:
        state, last = waiting.pop()
        source = states[state, last]
        fst.add_arc(source, kaldifst.StdArc(blank, SILENT, 0.0, find(state, blank)))
        if last != blank:
            fst.add_arc(source, kaldifst.StdArc(last, SILENT, 0.0, source))
        final = float(lg.final(state).value)
        if math.isfinite(final):
            fst.set_final(source, final)
        for arc in _arcs(kaldifst, lg, state):
            if arc.ilabel == SILENT:
                target = find(arc.nextstate, last)
            elif arc.ilabel != last:
                target = find(arc.nextstate, arc.ilabel)
            else:
                continue  # the same token again: only behind a blank
            fst.add_arc(source, kaldifst.StdArc(arc.ilabel, arc.olabel, float(arc.weight.value), target))
    return fst


def _arcs(kaldifst: Any, fst: Any, state: int) -> Iterator[Any]:
    iterator = kaldifst.ArcIterator(fst, state)
    while not iterator.done:
        yield iterator.value
        iterator.next()


def search_graph(
    graph: SearchGraph, log_probs_SV: torch.Tensor, beam: float = 16.0, max_active: int = 3000
) -> GraphResult:
    """The best sentence of one utterance; where it breaks off inside of a word, the best path so far.

    Args:
        log_probs_SV: CTC log probabilities of the valid steps. beam: in natural log. max_active: states kept per step.

    Raises:
        MissingDependency: kaldi-decoder is not installed.
    """
    kaldifst = _import_kaldifst()
    try:
        import kaldi_decoder
    except ImportError as error:
        raise MissingDependency("graph search needs kaldi-decoder: `.venv/bin/python -m pip install kaldi-decoder`") from error
    if not len(log_probs_SV):
        return GraphResult([], 0.0, [])
    options = kaldi_decoder.FasterDecoderOptions(max_active=max_active)
    options.beam = beam
    decoder = kaldi_decoder.FasterDecoder(graph.fst, options)
    scores = log_probs_SV.detach().float().cpu().contiguous().numpy()
    decoder.decode(kaldi_decoder.DecodableCtc(scores))
    _, path = decoder.get_best_path()
    _, tokens, words, weight = kaldifst.get_linear_symbol_sequence(path)
    score = -float(weight.value1 + weight.value2)
    return GraphResult([graph.words[label - 1] for label in words], score, [label - 1 for label in tokens])


def as_text(fst: Any) -> str:
    """A kaldifst graph in OpenFst's text form; the first line is the start state's."""
    kaldifst = _import_kaldifst()
    lines: list[str] = []
    states = [fst.start, *(state for state in range(fst.num_states) if state != fst.start)]
    for state in states:
        for arc in _arcs(kaldifst, fst, state):
            lines.append(f"{state} {arc.nextstate} {arc.ilabel} {arc.olabel} {float(arc.weight.value)}")
        final = float(fst.final(state).value)
        if math.isfinite(final):
            lines.append(f"{state} {final}")
    return "\n".join(lines)
