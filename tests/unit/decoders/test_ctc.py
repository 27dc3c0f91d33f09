"""CTC prefix scores against a sum over every path."""

from __future__ import annotations

import itertools

import torch

from xllm_speech.decoders.ctc import CtcPrefixScorer, CtcPrefixState, ctc_greedy, ctc_loss


def collapse(path):
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def brute_force(log_probs, prefix, whole):
    """log of the total probability of paths whose collapsed form begins with (or is) `prefix`."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=log_probs.shape[0]):
        text = collapse(path)
        if text == prefix if whole else text[: len(prefix)] == prefix:
            total += float(torch.exp(sum(log_probs[s, token] for s, token in enumerate(path))))
    return total


def test_prefix_and_final_scores_equal_the_sum_over_paths():
    torch.manual_seed(0)
    lens = torch.tensor([5, 3])
    log_probs = torch.randn(2, 5, 4).log_softmax(-1)
    scorer = CtcPrefixScorer(log_probs, lens)
    state = scorer.start()
    prefixes = [(), ()]
    for tokens in ([2, 1], [2, 3], [1, 3]):  # a repeat in each row
        every = torch.arange(1, 4).expand(2, 3)
        scores, token_forward, blank_forward = scorer.extend(state, every)
        for row in range(2):
            for place, token in enumerate((1, 2, 3)):
                expected = brute_force(log_probs[row, : lens[row]], (*prefixes[row], token), whole=False)
                assert abs(float(scores[row, place].exp()) - expected) < 1e-5
        picks = torch.tensor(tokens) - 1
        rows = torch.arange(2)
        state = CtcPrefixState(token_forward[rows, picks], blank_forward[rows, picks], torch.tensor(tokens))
        prefixes = [(*prefix, token) for prefix, token in zip(prefixes, tokens, strict=True)]
        for row, score in enumerate(scorer.finish(state).exp().tolist()):
            assert abs(score - brute_force(log_probs[row, : lens[row]], prefixes[row], whole=True)) < 1e-5


def test_greedy_merges_repeats_and_stops_at_the_length():
    best = torch.tensor([[1, 1, 0, 1, 2, 2], [3, 0, 3, 3, 1, 1]])
    logits = torch.nn.functional.one_hot(best, 4).float()
    assert ctc_greedy(logits, torch.tensor([6, 4])) == [[1, 1, 2], [3, 3]]


def test_loss_of_an_impossible_text_is_zero_and_without_nan():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    tokens = torch.tensor([[1, 1, 1, 1], [2, 3, 0, 0]])
    loss = ctc_loss(logits, torch.tensor([3, 3]), tokens, torch.tensor([4, 2]))
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()
