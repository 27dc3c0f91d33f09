"""Image and video interfaces against one item at a time."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.errors import SeamError
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.vision import ClipFeatures, ImageInterface, VideoInterface
from xllm_speech.records import Memory

torch.set_num_threads(1)
TOKENS, WIDTH, QUERIES, H = 5, 12, 3, 10


def querying(positions: int = 0, dropout: float = 0.1, text: bool = False) -> QueryTransformer:
    torch.manual_seed(0)
    return QueryTransformer(WIDTH, QUERIES, 16, 3, 2, 32, positions=positions, dropout=dropout, init_std=0.4, text=text)


@pytest.fixture
def image() -> ImageInterface:
    return ImageInterface(querying(positions=TOKENS), H).eval()


def features(items: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(items, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def full(x_BND: torch.Tensor) -> Memory:
    return Memory(x_BND, torch.full((len(x_BND),), x_BND.shape[1]))


def test_image_is_norm_positions_qformer_and_adapter(image: ImageInterface) -> None:
    x = features(3)
    slots = image(full(x))
    assert (slots.kind, slots.lens_N.tolist()) == ("image", [QUERIES] * 3)
    part = image.querying
    assert part.ln_vision.eps == 1e-5
    assert part.positions is not None
    for item in range(3):
        seen = torch.nn.functional.layer_norm(x[item], (WIDTH,), part.ln_vision.weight, part.ln_vision.bias, 1e-5)
        asked = part.qformer(
            query_embeds=part.queries[None], encoder_hidden_states=(seen + part.positions)[None]
        ).last_hidden_state[0]
        torch.testing.assert_close(slots.x_NQH[item], asked @ image.adapter.weight.T + image.adapter.bias, rtol=1e-4, atol=1e-5)


def test_cross_attention_is_in_every_second_layer() -> None:
    assert [layer.has_cross_attention for layer in querying().qformer.encoder.layer] == [True, False, True]


def test_padding_of_features_is_invisible_even_nan(image: ImageInterface) -> None:
    x = features(2)
    alone = image(Memory(x[1:, :3], torch.tensor([3]))).x_NQH[0]
    x[1, 3:] = float("nan")
    both = image(Memory(torch.cat([x, torch.full((2, 4, WIDTH), 9.0)], 1), torch.tensor([TOKENS, 3])))
    torch.testing.assert_close(both.x_NQH[1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.x_NQH[0], image(full(x[:1])).x_NQH[0], rtol=1e-4, atol=1e-5)


def test_positions_tell_places_apart(image: ImageInterface) -> None:
    x = features(1)
    turned = x.flip(1)
    assert not torch.allclose(image(full(x)).x_NQH, image(full(turned)).x_NQH, rtol=1e-2, atol=1e-2)
    blind = ImageInterface(querying(), H).eval()
    torch.testing.assert_close(blind(full(x)).x_NQH, blind(full(turned)).x_NQH, rtol=1e-4, atol=1e-5)


def test_absent_pictures_and_surplus_tokens_are_refused(image: ImageInterface) -> None:
    with pytest.raises(SeamError, match="item 1 has no features"):
        image(Memory(features(2), torch.tensor([TOKENS, 0])))
    with pytest.raises(SeamError, match="6 features of an item, but positions for 5"):
        image(full(torch.randn(1, 6, WIDTH)))


def test_half_precision_features_are_taken(image: ImageInterface) -> None:
    x = features(2).bfloat16()
    torch.testing.assert_close(image(full(x)).x_NQH, image(full(x.float())).x_NQH)


def test_clips_are_their_frames_one_after_another(image: ImageInterface) -> None:
    video = VideoInterface.from_image(image)
    x = features(6)
    counts = [1, 3, 2]
    slots = video(ClipFeatures(full(x), torch.tensor(counts)))
    assert slots.kind == "video"
    assert slots.lens_N.tolist() == [count * QUERIES for count in counts]
    frame = 0
    for clip, count in enumerate(counts):
        for place in range(count):
            expected = image(full(x[frame : frame + 1])).x_NQH[0]
            found = slots.x_NQH[clip, place * QUERIES : (place + 1) * QUERIES]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            frame += 1
    assert not slots.x_NQH[0, QUERIES:].any()


@pytest.mark.parametrize("counts", [[1, 2], [4], [3, 0]])
def test_frames_that_do_not_add_up_are_refused(counts: list[int]) -> None:
    with pytest.raises(SeamError, match="ClipFeatures"):
        ClipFeatures(full(features(3 if 0 in counts else 5)), torch.tensor(counts))


@pytest.mark.parametrize("way", ["from_image", "start_from_image"])
def test_video_starts_as_the_image_interface_and_trains_apart(image: ImageInterface, way: str) -> None:
    if way == "from_image":
        video = VideoInterface.from_image(image)
    else:
        torch.manual_seed(5)
        video = VideoInterface(QueryTransformer(WIDTH, QUERIES, 16, 3, 2, 32, positions=TOKENS), H).eval()
        video.start_from_image(image)
    before = {name: value.clone() for name, value in image.state_dict().items()}
    assert video.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in video.state_dict().items())
    optimiser = torch.optim.SGD(video.parameters(), 0.1)
    video(ClipFeatures(full(features(2)), torch.tensor([2]))).x_NQH.square().sum().backward()
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in image.state_dict().items())
    assert not torch.equal(video.querying.queries, image.querying.queries)


def test_a_shared_qformer_belongs_to_the_image_interface_alone(image: ImageInterface) -> None:
    video = VideoInterface.from_image(image, share=True)
    assert set(video.state_dict()) == {"adapter.weight", "adapter.bias"}
    assert video.trained_in(2) == video.trained_in(3) == ("adapter",)
    clips = ClipFeatures(full(features(2)), torch.tensor([2]))
    before = video(clips).x_NQH
    before.square().sum().backward()
    assert video.adapter.weight.grad is not None
    assert all(parameter.grad is None for parameter in image.parameters())
    with torch.no_grad():
        image.querying.queries.add_(1.0)
    assert not torch.allclose(video(clips).x_NQH, before)


def test_gradients_reach_every_part_and_not_the_frozen(image: ImageInterface) -> None:
    for phase, wanted in ((2, {name for name, _ in image.named_parameters()}), (3, {"adapter.weight", "adapter.bias"})):
        names = image.trained_in(phase)
        for name, parameter in image.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name.split(".")[0] in names)
        image(full(features(2))).x_NQH.square().sum().backward()
        moved = {name for name, parameter in image.named_parameters() if parameter.grad is not None and parameter.grad.any()}
        # A softmax does not feel what is added to all its scores, so the biases of keys get rounding errors at most.
        assert {name for name in moved ^ wanted if not name.endswith("key.bias")} == set()


def test_without_text_leaves_the_same_queries(image: ImageInterface) -> None:
    both = querying(text=True).eval()
    plain = both.without_text()
    assert plain.state_dict().keys() == querying().state_dict().keys() < both.state_dict().keys()
    memory = full(features(2))
    assert torch.equal(plain(memory), both(memory))
