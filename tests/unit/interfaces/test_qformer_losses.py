"""First stage of BLIP-2: who sees whom, the losses by plain loops, and that they can be learnt."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.errors import ConfigError, SeamError
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.qformer_losses import QFormerPretraining, draw_negatives
from xllm_speech.records import Memory

torch.set_num_threads(1)
WORDS, START, TOKENS, WIDTH, QUERIES = 12, 11, 4, 6, 3


@pytest.fixture
def model() -> QFormerPretraining:
    torch.manual_seed(0)
    querying = QueryTransformer(WIDTH, QUERIES, 8, 3, 2, 16, dropout=0.0, init_std=0.4, text=True)
    made = QFormerPretraining(querying, WORDS, START, longest_text=10, shared_width=5).eval()
    with torch.no_grad():
        made.text_embeddings.word_embeddings.weight.mul_(30)
        made.text_embeddings.position_embeddings.weight.mul_(10)
    return made


def pictures(items: int, seed: int = 1) -> Memory:
    x = torch.randn(items, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Memory(x, torch.full((items,), TOKENS))


IDS = torch.tensor([[1, 3, 4, 5, 2], [1, 6, 2, 0, 0], [1, 7, 8, 2, 0]])
LENS = torch.tensor([5, 3, 4])


def changed(ids: torch.Tensor, place: int) -> torch.Tensor:
    other = ids.clone()
    other[:, place] = (other[:, place] + 1) % START
    return other


def differs(left: torch.Tensor, right: torch.Tensor) -> bool:
    return not torch.allclose(left, right, rtol=1e-3, atol=1e-3)


def test_generated_text_sees_earlier_words_and_the_picture_and_no_later_word(model: QFormerPretraining) -> None:
    memory = pictures(3)
    logits = model.text_logits(memory, IDS)
    assert tuple(logits.shape) == (3, 5, WORDS)
    for place in range(5):
        other = model.text_logits(memory, changed(IDS, place))
        torch.testing.assert_close(other[:, :place], logits[:, :place], rtol=1e-4, atol=1e-5)
        assert all(differs(other[row, later], logits[row, later]) for row in range(3) for later in range(place, 5))
    seen = model.text_logits(pictures(3, seed=2), IDS)
    assert all(differs(seen[row, place], logits[row, place]) for row in range(3) for place in range(5))


def test_queries_do_not_see_the_text_they_generate(model: QFormerPretraining) -> None:
    memory, queries = pictures(3), len(model.querying.queries)
    kept = []
    model.querying.qformer.register_forward_hook(lambda module, given, out: kept.append(out.last_hidden_state[:, :queries]))
    model.text_logits(memory, IDS)
    model.text_logits(memory, changed(IDS, 1))
    alone = model.querying(memory)
    torch.testing.assert_close(kept[0], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept[1], alone, rtol=1e-4, atol=1e-5)


def test_matching_sees_all_words_both_ways_and_no_padding(model: QFormerPretraining) -> None:
    memory = pictures(3)
    logits = model.match_logits(memory, IDS, LENS)
    assert tuple(logits.shape) == (3, 2)
    for place in range(5):
        other = model.match_logits(memory, changed(IDS, place), LENS)
        for row in range(3):
            assert differs(other[row], logits[row]) == (place < int(LENS[row])), (row, place)
    alone = model.match_logits(Memory(memory.x_BND[1:2], memory.lens_B[1:2]), IDS[1:2, :3], LENS[1:2])
    torch.testing.assert_close(alone[0], logits[1], rtol=1e-4, atol=1e-5)


def test_contrast_sees_pictures_and_texts_apart(model: QFormerPretraining) -> None:
    memory = pictures(3)
    seen, read = model.embed(memory, IDS, LENS)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(3, QUERIES))
    assert torch.equal(model.embed(memory, changed(IDS, 1), LENS)[0], seen)
    assert torch.equal(model.embed(pictures(3, seed=2), IDS, LENS)[1], read)
    padding = IDS.clone()
    padding[1, 3:], padding[2, 4:] = 9, 9
    torch.testing.assert_close(model.embed(memory, padding, LENS)[1], read)


def test_losses_are_those_of_plain_loops(model: QFormerPretraining) -> None:
    memory = pictures(3)
    losses = model(memory, IDS, LENS)
    seen, read = model.embed(memory, IDS, LENS)
    similar = torch.stack([
        torch.stack([(seen[i] @ read[j]).max() for j in range(3)]) for i in range(3)
    ]) / model.temperature
    expected = 0.0
    for table in (similar, similar.T):
        for row in range(3):
            scores = table[row].log_softmax(0)
            expected += -(0.9 * scores[row] + 0.1 * scores.mean()) / 6
    torch.testing.assert_close(losses.contrastive, torch.as_tensor(expected))
    total, count = 0.0, 0
    for row in range(3):
        length = int(LENS[row])
        text = IDS[row : row + 1, :length]
        read_ids = torch.cat([torch.tensor([[START]]), text[:, 1:-1]], dim=1)
        logits = model.text_logits(Memory(memory.x_BND[row : row + 1], memory.lens_B[row : row + 1]), read_ids)[0]
        for place in range(length - 1):
            scores = logits[place].log_softmax(0)
            total += -(0.9 * scores[text[0, place + 1]] + 0.1 * scores.mean())
            count += 1
    torch.testing.assert_close(losses.generation, torch.as_tensor(total / count), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.total, losses.contrastive + losses.matching + losses.generation)


def test_matching_of_two_pairs_has_only_one_choice_of_negatives(model: QFormerPretraining) -> None:
    memory, ids, lens = pictures(2), IDS[:2], LENS[:2]
    found = model(memory, ids, lens).matching
    total = 0.0
    for picture in range(2):
        one = Memory(memory.x_BND[picture : picture + 1], memory.lens_B[:1])
        for text in range(2):
            scores = model.match_logits(one, ids[text : text + 1], lens[text : text + 1])[0].log_softmax(0)
            # A wrong pair occurs twice: as the picture's wrong text and as the text's wrong picture.
            total += -scores[1] if picture == text else -2 * scores[0]
    torch.testing.assert_close(found, torch.as_tensor(total / 6), rtol=1e-4, atol=1e-5)


def test_negatives_are_never_equal_captions_and_mostly_near() -> None:
    similar = torch.tensor([[9.0, 5.0, 1.0, 9.0]]).expand(400, 4)
    same = torch.tensor([[True, False, False, True]]).expand(400, 4)
    torch.manual_seed(0)
    column, has = draw_negatives(similar, same)
    assert bool(has.all())
    assert set(column.tolist()) <= {1, 2}
    assert (column == 1).float().mean() > 0.9
    _, has = draw_negatives(torch.zeros(2, 2), torch.tensor([[True, True], [True, False]]))
    assert has.tolist() == [False, True]


def test_a_batch_of_one_caption_only_has_true_pairs_only(model: QFormerPretraining) -> None:
    memory, ids, lens = pictures(2), IDS[:1].expand(2, -1), LENS[:1].expand(2)
    scores = model.match_logits(memory, ids, lens).log_softmax(1)
    torch.testing.assert_close(model(memory, ids, lens).matching, -scores[:, 1].mean())


def test_what_cannot_be_trained_on_is_refused(model: QFormerPretraining) -> None:
    with pytest.raises(SeamError, match="one pair has nothing to be told apart from"):
        model(pictures(1), IDS[:1], LENS[:1])
    with pytest.raises(SeamError, match="a length of 1 is below 2"):
        model(pictures(2), IDS[:2], torch.tensor([5, 1]))
    with pytest.raises(SeamError, match="a text of 11 tokens, positions for 10"):
        model(pictures(2), torch.ones(2, 11, dtype=torch.long), torch.tensor([11, 2]))
    with pytest.raises(ConfigError, match="no text branch"):
        QFormerPretraining(QueryTransformer(WIDTH, QUERIES, 8, 1, 2, 16), WORDS, START)
    with pytest.raises(ConfigError, match="start_id 12 is outside the vocabulary of 12"):
        QFormerPretraining(model.querying, WORDS, 12)


def test_gradients_reach_every_part_and_a_few_steps_learn_the_pairs(model: QFormerPretraining) -> None:
    model.train()
    memory, lens = pictures(6), torch.full((6,), 4)
    ids = torch.tensor([[1, 3 + item, 3 + (item * 2) % 6, 2] for item in range(6)])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    torch.manual_seed(0)
    first = model(memory, ids, lens)
    first.total.backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert {name for name in still if not name.endswith("key.bias")} == set()
    for _ in range(60):
        optimiser.zero_grad()
        last = model(memory, ids, lens)
        last.total.backward()
        optimiser.step()
    assert last.contrastive < first.contrastive / 2
    assert last.generation < first.generation / 2
    assert last.matching < first.matching
