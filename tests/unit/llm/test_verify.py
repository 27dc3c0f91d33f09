"""Draft and verify: whatever is drafted, the answer is that of plain greedy search of each prompt alone."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from transformers import LogitsProcessor, MistralConfig, MistralForCausalLM

from tests.unit.llm.test_loading import SIZES, causal_folder, prompts, row_of
from xllm_speech.llm import load_llm
from xllm_speech.llm.verify import Verifier, single_row
from xllm_speech.records import LlmInput

ROOM = 16


@pytest.fixture(scope="module", params=("chatglm", "llama", "qwen3", "glm4"))
def llm(request, official, tmp_path_factory):
    if request.param == "chatglm":
        return mute_padding(load_llm(official[0], dtype="float32"))
    return mute_padding(load_llm(causal_folder(tmp_path_factory.mktemp(request.param), request.param)))


def mute_padding(llm):
    """A chance model would write padding, which answers leave out, so that they would not tell all that was written."""
    with torch.no_grad():
        llm.model.get_output_embeddings().weight[llm.pad_id] = 0.0
    return llm


def alone(llm, prompt, room=ROOM, bias=None):
    """What transformers' own greedy search gives to each prompt by itself."""
    return [llm.generate(row_of(prompt, row), room, bias=bias)[0] for row in range(len(prompt.ids_BL))]


class Push(LogitsProcessor):
    """Pulls the best token down, the more the longer the text is."""

    def __call__(self, input_ids, scores):
        return scores - torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]) * 0.5 * input_ids.shape[1]


def spoilt(answers, seed, share, size):
    """A drafter that knows the answers but for a share of the tokens; sometimes it proposes nothing, or too much."""
    rng = random.Random(seed)

    def propose(row, written):
        rest = answers[row][len(written) :] + [rng.randrange(size) for _ in range(rng.randrange(4))]
        rest = [rng.randrange(size) if rng.random() < share else index for index in rest]
        return rest[: rng.randrange(len(rest) + 1)] if rng.random() < 0.3 else rest

    return propose


def count_passes(answer, drafts_of, room, ends):
    """Passes by the definition, from the plain answer: each pass keeps what agrees of a draft and writes one more."""
    whole = answer if len(answer) == room else [*answer, *ends]
    written, passes = 0, 0
    while written < len(whole):
        draft = drafts_of(written)[: room - written - 1]
        agreed = next((n for n, index in enumerate(draft) if whole[written + n : written + n + 1] != [index]), len(draft))
        written, passes = written + agreed + 1, passes + 1
    return passes


def test_any_draft_gives_the_plain_answer_in_a_batch_and_alone(llm):
    prompt = prompts(llm, "right", answers=False)
    expected = alone(llm, prompt)
    assert len({tuple(answer) for answer in expected}) > 1
    verifier, size = Verifier(llm), llm.model.config.vocab_size
    for seed in range(8):
        drafter = spoilt(expected, seed, (0.0, 0.1, 0.4, 1.0)[seed % 4], size)
        assert [answer.ids for answer in verifier.answer(prompt, ROOM, drafter)] == expected
        row = seed % 3
        single = verifier.answer(row_of(prompt, row), ROOM, lambda _, written, row=row, draft=drafter: draft(row, written))
        assert single[0].ids == expected[row]
    assert [answer.ids for answer in verifier.answer(prompt, ROOM)] == expected
    assert [verifier.answer(row_of(prompt, row), ROOM)[0].ids for row in range(3)] == expected


def test_passes_are_as_few_as_the_draft_allows(llm):
    prompt = prompts(llm, "left", answers=False)
    expected = alone(llm, prompt)
    verifier = Verifier(llm)
    right = verifier.answer(prompt, ROOM, lambda row, written: expected[row][len(written) :])
    assert [answer.passes for answer in right] == [1, 1, 1]
    assert [answer.offered for answer in right] == [min(len(answer), ROOM - 1) for answer in expected]
    plain = verifier.answer(prompt, ROOM)
    assert [answer.passes for answer in plain] == [min(len(answer) + 1, ROOM) for answer in expected]
    assert all(answer.offered == answer.accepted == 0 for answer in plain)
    wrong = next(index for index in range(6, 40) if all(index not in answer for answer in expected))
    # every third token of the draft is wrong
    drafts = [[wrong if place % 3 == 2 else index for place, index in enumerate(answer)] for answer in expected]
    found = verifier.answer(prompt, ROOM, lambda row, written: drafts[row][len(written) :])
    ends = [llm.framing.end_ids[0]]
    assert [answer.passes for answer in found] == [
        count_passes(answer, lambda start, draft=draft: draft[start:], ROOM, ends)
        for answer, draft in zip(expected, drafts, strict=True)
    ]
    assert sum(answer.accepted for answer in found) > 0


def test_a_bias_counts_and_drafts_still_change_nothing(llm):
    prompt = prompts(llm, "right", answers=False)
    expected = alone(llm, prompt, bias=Push())
    assert expected != alone(llm, prompt)
    verifier = Verifier(llm, Push())
    for seed in range(4):
        found = verifier.answer(prompt, ROOM, spoilt(expected, seed, 0.2, llm.model.config.vocab_size))
        assert [answer.ids for answer in found] == expected
    assert [answer.ids for answer in verifier.answer(prompt, ROOM)] == expected


@pytest.mark.parametrize("bias", [None, Push()])
def test_probabilities_are_those_of_one_pass_over_everything(llm, bias):
    prompt = prompts(llm, "left", answers=False)
    answers = Verifier(llm, bias).answer(prompt, ROOM, spoilt(alone(llm, prompt, bias=bias), 3, 0.3, 50))
    for row, answer in enumerate(answers):
        own = row_of(prompt, row)
        said = torch.tensor([answer.ids], dtype=torch.long)
        whole = LlmInput(
            torch.cat([own.ids_BL, said], 1), torch.cat([own.embeds_BLH, llm.embed(said)], 1),
            torch.ones(1, own.ids_BL.shape[1] + said.shape[1], dtype=torch.bool),
            torch.cat([own.slots_BL, torch.zeros_like(said).bool()], 1),
        )
        log_probs = llm(whole)[0, own.ids_BL.shape[1] - 1 : -1].log_softmax(-1).gather(1, said[0][:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.log_probs), log_probs, atol=1e-4, rtol=1e-4)


def test_rows_that_ended_leave_the_batch(llm, monkeypatch):
    prompt = prompts(llm, "left", answers=False)
    expected = alone(llm, prompt)
    sizes = []
    forward = llm.model.forward

    @functools.wraps(forward)  # transformers asks for its signature
    def watched(*args, **options):
        sizes.append(len(options["inputs_embeds"]))
        return forward(*args, **options)

    monkeypatch.setattr(llm.model, "forward", watched)
    # the second row is known by heart, the others are not known at all
    Verifier(llm).answer(prompt, ROOM, lambda row, written: expected[1][len(written) :] if row == 1 else [])
    assert sizes[:2] == [3, 2]
    assert sum(sizes) == 1 + sum(min(len(expected[row]) + 1, ROOM) for row in (0, 2))


def test_settings_of_the_model_count(llm, monkeypatch):
    prompt = prompts(llm, "left", answers=False)
    before = alone(llm, prompt)
    monkeypatch.setattr(llm.model.generation_config, "repetition_penalty", 3.0)
    monkeypatch.setattr(llm.model.generation_config, "suppress_tokens", [before[0][0]])
    expected = alone(llm, prompt)
    assert expected != before
    for seed in range(4):
        found = Verifier(llm).answer(prompt, ROOM, spoilt(expected, seed, 0.3, 50))
        assert [answer.ids for answer in found] == expected


def test_a_near_tie_is_decided_plainly(llm, monkeypatch):
    prompt = prompts(llm, "left", answers=False)
    expected = alone(llm, prompt)
    head = llm.model.get_output_embeddings().weight
    kept = head.detach().clone()
    first, other = expected[0][1], next(index for index in range(6, 40) if all(index not in row for row in expected))
    with torch.no_grad():
        head[other] = head[first] * (1 + 1e-6)  # two tokens that no rounding can be trusted to tell apart
    try:
        tied = alone(llm, prompt)
        found = Verifier(llm).answer(prompt, ROOM, lambda row, written: expected[row][len(written) :])
        assert [answer.ids for answer in found] == tied
        assert found[0].near_tie
        assert found[0].passes > 1
        plain = Verifier(llm).answer(row_of(prompt, 0), ROOM)[0]
        assert (plain.ids, plain.near_tie) == (tied[0], False)
    finally:
        with torch.no_grad():
            head.copy_(kept)


def test_ends_and_too_much_in_a_draft_do_no_harm(llm):
    prompt = row_of(prompts(llm, "left", answers=False), 0)
    expected = llm.generate(prompt, ROOM)
    end = llm.framing.end_ids[0]
    for draft in ([end], [*expected[0][:2], end, *expected[0][2:]], expected[0] * 9):
        found = Verifier(llm).answer(prompt, ROOM, lambda _, written, draft=draft: draft[len(written) :])
        assert [answer.ids for answer in found] == expected
    for room in (1, 2, 3):
        short = Verifier(llm).answer(prompt, room, lambda _, written: expected[0][len(written) :])[0]
        assert short.ids == llm.generate(prompt, room)[0]
        assert short.passes == 1


def test_a_row_by_itself_is_that_row(llm):
    prompt = prompts(llm, "left", answers=False)
    for row in range(3):
        assert torch.equal(single_row(prompt, row).embeds_BLH, row_of(prompt, row).embeds_BLH)


def test_a_cache_that_gives_nothing_back_is_not_asked_to(llm, monkeypatch):
    prompt = prompts(llm, "left", answers=False)
    verifier = Verifier(llm)
    assert verifier.takes_back
    verifier.takes_back = False
    found = verifier.answer(prompt, ROOM, lambda row, written: [7, 8])
    assert [answer.ids for answer in found] == alone(llm, prompt)
    assert all(answer.log_probs == [] and answer.offered == 0 for answer in found)


def test_a_sliding_window_forgets_nothing_too_early(tmp_path):
    causal_folder(tmp_path, "llama")
    torch.manual_seed(5)
    config = MistralConfig(**SIZES, vocab_size=56, sliding_window=7, bos_token_id=2, eos_token_id=5, pad_token_id=1)
    model = MistralForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3)
    model.save_pretrained(str(tmp_path))
    llm = mute_padding(load_llm(tmp_path))
    prompt = prompts(llm, "left", answers=False)
    expected = alone(llm, prompt, 24)
    assert max(map(len, expected)) > 12
    for seed in range(8):
        found = Verifier(llm).answer(prompt, 24, spoilt(expected, seed, 0.2, 56))
        assert [answer.ids for answer in found] == expected


def test_half_precision_runs(tmp_path):
    folder = causal_folder(tmp_path, "llama")
    prompt = prompts(load_llm(folder), "left", answers=False)
    llm = load_llm(folder, dtype="bfloat16")
    expected = alone(llm, prompt)
    found = Verifier(llm).answer(prompt, ROOM, lambda row, written: expected[row][len(written) :])
    assert [answer.ids for answer in found] == expected
