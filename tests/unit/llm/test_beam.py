"""Beams in a batch: what transformers' own search gives to each prompt alone, though whoever has ended leaves."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import LogitsProcessor

from tests.unit.llm.test_loading import causal_folder, prompts, row_of
from tests.unit.llm.test_verify import mute_padding
from xllm_speech.llm import load_llm
from xllm_speech.llm.beam import BeamSearcher
from xllm_speech.llm.passes import single_row
from xllm_speech.records import LlmInput

ROOM = 12


@pytest.fixture(scope="module", params=("chatglm", "llama", "glm4"))
def llm(request, official, tmp_path_factory):
    if request.param == "chatglm":
        return mute_padding(load_llm(official[0], dtype="float32"))
    return mute_padding(load_llm(causal_folder(tmp_path_factory.mktemp(request.param), request.param)))


class Ending(LogitsProcessor):
    """A chance model hardly ever ends by itself: makes the end about as likely as the second best, by what was written."""

    def __init__(self, llm, shift=0.0):
        self.ends, self.shift = torch.tensor(llm.framing.end_ids[:1]), shift

    def __call__(self, input_ids, scores):
        second = scores.topk(2).values[:, 1:]
        return scores.index_copy(1, self.ends, second + 0.7 * (input_ids.sum(1, keepdim=True) % 5) - 2.2 + self.shift)


def many(llm, count=9):
    """Prompts of three lengths, each with media of its own."""
    three = prompts(llm, "left", answers=False)
    rows = torch.arange(count) % 3
    torch.manual_seed(2)
    ids, mask, slots = three.ids_BL[rows], three.mask_BL[rows], three.slots_BL[rows]
    embeds = three.embeds_BLH[rows].clone()
    embeds[slots] = torch.randn(int(slots.sum()), llm.width)
    return LlmInput(ids, embeds, mask, slots)


def alone(llm, prompt, beams, room=ROOM, **more):
    return [llm.generate(row_of(prompt, row), room, beams, **more)[0] for row in range(len(prompt.ids_BL))]


@pytest.mark.parametrize(
    ("early", "penalty"), [(False, 1.0), (True, 1.0), ("never", 1.0), (False, 0.0), ("never", -0.7), (True, 2.0)]
)
def test_a_batch_is_answered_as_each_prompt_alone(llm, monkeypatch, early, penalty):
    monkeypatch.setattr(llm.model.generation_config, "early_stopping", early)
    monkeypatch.setattr(llm.model.generation_config, "length_penalty", penalty)
    prompt, ending = many(llm), Ending(llm)
    searcher, lengths = BeamSearcher(llm, ending), set()
    for beams in (2, 4):
        expected = alone(llm, prompt, beams, bias=ending)
        assert searcher.answer(prompt, ROOM, beams) == expected
        assert searcher.answer(row_of(prompt, 1), ROOM, beams) == expected[1:2]
        lengths |= {len(ids) for ids in expected}
    assert len(lengths) > 1
    assert expected != alone(llm, prompt, 1, bias=ending)


def test_settings_of_the_model_and_a_bias_count(llm, monkeypatch):
    prompt = many(llm, 3)
    plain = alone(llm, prompt, 3)
    monkeypatch.setattr(llm.model.generation_config, "repetition_penalty", 3.0)
    settled = alone(llm, prompt, 3)
    assert BeamSearcher(llm).answer(prompt, ROOM, 3) == settled != plain

    biased = alone(llm, prompt, 3, bias=Ending(llm, 2.0))
    assert BeamSearcher(llm, Ending(llm, 2.0)).answer(prompt, ROOM, 3) == biased != settled


def test_a_prompt_that_has_ended_leaves_the_batch(llm, monkeypatch):
    prompt, sizes, forward = many(llm), [], llm.model.forward

    @functools.wraps(forward)  # transformers asks for its signature
    def watched(*args, **options):
        sizes.append(len(options["inputs_embeds"]))
        return forward(*args, **options)

    monkeypatch.setattr(llm.model.generation_config, "early_stopping", True)
    expected = alone(llm, prompt, 2, bias=Ending(llm))
    monkeypatch.setattr(llm.model, "forward", watched)
    assert BeamSearcher(llm, Ending(llm)).answer(prompt, ROOM, 2) == expected
    assert sizes[:2] == [9, 18]  # a prompt is read once, whatever the number of beams
    assert sizes == [9, *sorted(sizes[1:], reverse=True)]
    assert sizes[-1] < 18


def test_a_near_tie_is_decided_by_the_search_alone(llm, monkeypatch):
    prompt = many(llm, 3)
    head = llm.model.get_output_embeddings().weight
    kept = head.detach().clone()
    first = alone(llm, prompt, 2)[0][0]
    with torch.no_grad():
        head[[index for index in range(6, 40) if index != first][:3]] = head[first] * (1 + 1e-6)
    asked, generate = [], type(llm).generate
    try:
        expected = alone(llm, prompt, 2)
        monkeypatch.setattr(type(llm), "generate", lambda self, one, *args, **more: asked.append(one) or generate(
            self, one, *args, **more
        ))
        assert BeamSearcher(llm).answer(prompt, ROOM, 2) == expected
        assert torch.equal(asked[0].embeds_BLH, single_row(prompt, 0).embeds_BLH)
        assert all(len(one.ids_BL) == 1 for one in asked)
    finally:
        with torch.no_grad():
            head.copy_(kept)


def test_short_answers_and_a_cache_that_gives_nothing_back(llm):
    prompt = many(llm, 4)
    searcher = BeamSearcher(llm)
    for room in (1, 2):
        assert searcher.answer(prompt, room, 3) == alone(llm, prompt, 3, room)
    searcher.takes_back = False
    assert searcher.answer(prompt, ROOM, 3) == llm.generate(prompt, ROOM, 3)
