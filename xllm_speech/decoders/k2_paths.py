"""k2 in place of torch and kaldi-decoder: the CTC loss, the best path over CTC's topology (H), and a graph of words (HLG).

Results are those of `ctc.ctc_loss`, `ctc.ctc_greedy` and `graph.search_graph`; k2 works in batches and on a GPU. It is
optional, as its wheels are made for one torch each. Blank is token 0 throughout.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from xllm_speech.base.errors import MissingDependency
from xllm_speech.decoders.graph import GraphResult, SearchGraph, as_text, search_graph

EXACT_BEAM = 40.0  # paths further behind the best one add less than float32 can show
LEAST_ACTIVE = 30


def import_k2() -> Any:
    """The package.

    Raises:
        MissingDependency: it is not installed, or does not fit the installed torch.
    """
    try:
        import k2
    except ImportError as error:
        raise MissingDependency(
            f"k2 is not installed for torch {torch.__version__}; its wheels are at https://k2-fsa.github.io/k2/cpu.html and "
            "https://k2-fsa.github.io/k2/cuda.html; without it there are --search graph and model.loss.ctc_by=torch"
        ) from error
    return k2


def ctc_loss_k2(
    logits_BSV: torch.Tensor, lens_B: torch.Tensor, tokens_BL: torch.Tensor, token_lens_B: torch.Tensor
) -> torch.Tensor:
    """`ctc.ctc_loss` by k2: a sum over the batch, zero of an utterance with fewer steps than its tokens need.

    Raises:
        MissingDependency: no k2.
    """
    k2 = import_k2()
    texts = [row[:length].tolist() for row, length in zip(tokens_BL, token_lens_B.tolist(), strict=True)]
    steps = lens_B.tolist()
    # A token that is written twice needs a blank between.
    least = [max(1, len(text) + sum(first == second for first, second in itertools.pairwise(text))) for text in texts]
    possible = [row for row in range(len(texts)) if steps[row] >= least[row]]
    if not possible:
        return logits_BSV.sum() * 0.0
    rows = sorted(possible, key=lambda row: -steps[row])  # as k2 wants them
    log_probs_BSV = logits_BSV.float().log_softmax(-1)
    graphs = k2.ctc_graph([texts[row] for row in rows], modified=False, device=logits_BSV.device)
    loss = k2.ctc_loss(graphs, _dense(k2, log_probs_BSV, steps, rows), EXACT_BEAM, reduction="sum", use_double_scores=True)
    return loss.to(log_probs_BSV.dtype)


def search_tokens_k2(
    log_probs_BSV: torch.Tensor, lens_B: torch.Tensor, beam: float = 16.0, max_active: int = 3000
) -> list[GraphResult]:
    """The best path over H of each utterance; no words, a token for each step. H has an arc for each pair of tokens.

    Raises:
        MissingDependency: no k2.
    """
    k2 = import_k2()
    topology = k2.ctc_topo(log_probs_BSV.shape[2] - 1, device=log_probs_BSV.device)
    steps = lens_B.tolist()
    rows = sorted((row for row in range(len(steps)) if steps[row]), key=lambda row: -steps[row])
    found = [GraphResult([], 0.0, []) for _ in steps]
    if rows:
        dense = _dense(k2, log_probs_BSV, steps, rows)
        lattice = k2.intersect_dense_pruned(k2.arc_sort(topology), dense, beam, beam, LEAST_ACTIVE, max_active)
        for row, (tokens, _, score) in zip(rows, _best_paths(k2, lattice), strict=True):
            found[row] = GraphResult([], score, tokens)
    return found


def search_graph_k2(
    graph: SearchGraph, log_probs_BSV: torch.Tensor, lens_B: torch.Tensor, beam: float = 16.0, max_active: int = 3000
) -> list[GraphResult]:
    """`graph.search_graph` of a batch, on the device of `log_probs_BSV`.

    An utterance that breaks off inside of a word has no path in k2 and is searched by kaldi-decoder.

    Raises:
        MissingDependency: no k2, or no kaldi-decoder where it is needed.
    """
    k2 = import_k2()
    hlg = _compile(k2, graph, log_probs_BSV.device)
    steps = lens_B.tolist()
    rows = sorted((row for row in range(len(steps)) if steps[row]), key=lambda row: -steps[row])
    found = [GraphResult([], 0.0, []) for _ in steps]
    if rows:
        dense = _dense(k2, log_probs_BSV, steps, rows)
        lattice = k2.intersect_dense_pruned(hlg, dense, beam, beam, LEAST_ACTIVE, max_active)
        for row, (tokens, words, score) in zip(rows, _best_paths(k2, lattice), strict=True):
            if len(tokens) == steps[row]:
                found[row] = GraphResult([graph.words[label - 1] for label in words], score, tokens)
            else:
                found[row] = search_graph(graph, log_probs_BSV[row, : steps[row]], beam, max_active)
    return found


def _compile(k2: Any, graph: SearchGraph, device: torch.device) -> Any:
    """HLG on a device; made once for each graph."""
    if device not in graph.compiled:
        # In k2 blank is label 0, which in LG is silent: the same shift by one that LG carries is taken back in the topology.
        lg = k2.remove_epsilon(k2.Fsa.from_openfst(as_text(graph.lg), acceptor=False))
        topology = k2.ctc_topo(graph.tokens - 1)
        topology.aux_labels = torch.where(topology.aux_labels > 0, topology.aux_labels + 1, topology.aux_labels)
        hlg = k2.arc_sort(k2.connect(k2.compose(k2.arc_sort(topology), k2.arc_sort(k2.connect(lg)))))
        graph.compiled[device] = hlg.to(device)
    return graph.compiled[device]


def _dense(k2: Any, log_probs_BSV: torch.Tensor, steps: list[int], rows: list[int]) -> Any:
    spans = torch.tensor([[row, 0, steps[row]] for row in rows], dtype=torch.int32)
    return k2.DenseFsaVec(log_probs_BSV.float().contiguous(), spans)


def _best_paths(k2: Any, lattice: Any) -> list[tuple[list[int], list[int], float]]:
    """(a label for each step, output labels, score) of each lattice; no labels where it is empty."""
    best = k2.shortest_path(lattice, use_double_scores=True)
    scores = best.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    found = []
    for place, score in enumerate(scores):
        aux = best[place].aux_labels
        written = (aux if torch.is_tensor(aux) else aux.values).tolist()
        found.append((best[place].labels[:-1].tolist(), [label for label in written if label > 0], score))
    return found
