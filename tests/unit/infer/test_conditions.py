"""Conditions of a multimodal test set: what is heard, seen and read under each, what is compared, and what is kept."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import SupervisionSegment
from PIL import Image

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.bin import main as entry
from xllm_speech.bin.conditions import CONDITIONS as OFFERED
from xllm_speech.bin.score import normal_form
from xllm_speech.features.audio import load_file
from xllm_speech.infer.condition_media import Item, Picture, blank_images, read_items, wrong_images
from xllm_speech.infer.conditions import CONDITIONS, ConditionsJob, Recogniser, plan_conditions, run_conditions
from xllm_speech.manifests.cuts import save_cuts
from xllm_speech.records import Hypothesis

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (255, 255, 255)}


def item(number: int, content: int, caption: str) -> Item:
    cut = SimpleNamespace(id=f"u{number}")
    return Item(cut, "x", f"{number}.png", Picture(str(content), 4, 4, 100.0), caption)


@pytest.fixture
def folder(tmp_path):
    """Six utterances: two copies of one picture, a broken picture, and one without a caption."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        Image.new("RGB", (16, 12 if name == "blue" else 16), colour).save(tmp_path / f"{name}.png")
    Image.open(tmp_path / "red.png").save(tmp_path / "red_again.bmp")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    cuts = []
    for number, (name, caption) in enumerate([
        ("red.png", "红色的圆形"), ("red_again.bmp", "一个圆形"), ("green.png", "绿色的圆形"), ("blue.png", "蓝色的旗子"),
        ("white.png", ""), ("broken.png", "没有"),
    ]):
        path = tmp_path / f"u{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(8000 + 1600 * number), 16000)
        cut = load_file(path)
        cut.custom = {"image": str(tmp_path / name), "caption": caption, "answer": "x"}
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text=f"{caption[:2]}是什么颜色")]
        cuts.append(cut)
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    return tmp_path


def test_the_verb_offers_the_conditions_of_the_library():
    assert tuple(CONDITIONS) == OFFERED


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from("红绿蓝黄黑白")), min_size=1, max_size=30), st.integers(0, 5))
def test_a_wrong_image_is_never_the_right_one(kinds, seed):
    # The caption is a function of the picture here, so that groups are those of the caption.
    items = [item(number, content, caption) for number, (content, caption) in enumerate(kinds)]
    by_image = {str(one.image): one for one in items}
    found = wrong_images(items, seed)
    assert found == wrong_images(list(reversed(items)), seed)
    for one in items:
        if one.cut.id in found:
            other = by_image[found[one.cut.id]]
            assert other.picture.sha256 != one.picture.sha256
            assert other.caption != one.caption


def test_wrong_images_come_as_often_as_right_ones_and_follow_the_seed():
    items = [item(number, number // 2, f"图{number // 2}") for number in range(20)]
    found = wrong_images(items, 0)
    assert Counter(found.values()) == Counter(str(one.image) for one in items)
    assert found != wrong_images(items, 1)
    crowded = [item(number, max(0, number - 5), f"图{max(0, number - 5)}") for number in range(8)]
    assert set(wrong_images(crowded, 0)) == {one.cut.id for one in crowded}
    assert wrong_images([item(number, 0, "图") for number in range(4)], 0) == {}
    assert wrong_images([item(0, 0, ""), item(1, 1, "")], 0) == {"u0": "1.png", "u1": "0.png"}


def test_pictures_are_known_by_their_pixels_and_grey_ones_have_their_size(folder):
    from xllm_speech.manifests.cuts import load_cuts

    items, notes = read_items(load_cuts(folder / "cuts.jsonl.gz"))
    assert items[0].picture == items[1].picture
    assert (items[5].image, items[5].picture) == (None, None)
    assert len(notes) == 1
    assert "u5 counts as an utterance without a picture" in notes[0]
    assert "broken.png" in notes[0]
    wrong = wrong_images(items, 0)
    assert set(wrong) == {f"u{number}" for number in range(5)}
    assert "red" not in wrong["u0"] + wrong["u1"]
    grey, level = blank_images(items, folder / "grey")
    assert set(grey) == set(wrong)
    pictures = [Image.open(grey[f"u{number}"]) for number in range(5)]
    assert [picture.size for picture in pictures] == [(16, 16)] * 3 + [(16, 12), (16, 16)]
    assert all(picture.getcolors() == [(picture.width * picture.height, (level,) * 3)] for picture in pictures)
    assert level == round((200 * 0.299 + 200 * 0.587 + 200 * 0.114 + 255) / 4)  # of the four pictures, as luminance


class Listener:
    """Hears right what it sees or reads the colour of, and green otherwise; remembers what it was given."""

    def __init__(self):
        self.asked = []
        self.recogniser = Recogniser(
            "llm", {"model": "m", "checkpoint_sha256": "c", "prompt": None}, self.stream, {}, ("captions: unheard of",)
        )

    def stream(self, cuts, wording, report):
        given = [(cut.id, cut.custom["image"], cut.custom["caption"]) for cut in cuts]
        self.asked.append((wording, given))
        for name, image, caption in given:
            report.utterances += 1
            known = caption[:2] if caption else "红色" if image and "red" in image else "绿色"
            yield Hypothesis(name, f"{known}是什么颜色" if wording != 1 else "什么")


def test_every_condition_shows_what_its_name_says(folder):
    listener = Listener()
    job = ConditionsJob(folder / "cuts.jsonl.gz", folder / "out", wordings=True, set_name="试")
    found, worded = run_conditions(job, listener.recogniser, normal_form(False))
    given = [{name: rest for name, *rest in cuts} for _, cuts in listener.asked]
    speech, right, wrong, blank, caption, both = given[:6]
    assert all(rest == [None, None] for rest in speech.values())
    assert right["u0"] == [str(folder / "red.png"), None]
    assert right["u5"] == [None, None]
    assert all("red" not in str(wrong[name][0]) for name in ("u0", "u1"))
    assert {rest[0] for name, rest in wrong.items() if name != "u5"} <= {rest[0] for rest in right.values()}
    assert all("grey" in rest[0] for name, rest in blank.items() if name != "u5")
    assert caption["u0"] == [None, "红色的圆形"]
    assert caption["u4"] == [None, None]
    assert both["u0"] == [str(folder / "red.png"), "红色的圆形"]
    rows = found["conditions"]
    assert list(rows) == list(CONDITIONS)
    assert (found["baseline"], found["beside"], found["set"], found["grey"]) == ("S", "S+V", "试", 114)
    assert rows["S"]["difference"] is None
    assert rows["S+V"]["beside"] is None
    assert rows["S+wrong"]["beside"]["points"] > 0
    assert rows["S+V"]["grounded"]["percent"] < rows["S"]["grounded"]["percent"]
    assert rows["S+L"]["cer"] < rows["S+V"]["cer"] < rows["S"]["cer"]
    assert found["notes"][1:] == [
        "1 of 6 utterances have no picture; conditions with one are for them as without",
        "1 of 6 utterances have no caption; conditions with one are for them as without", "captions: unheard of",
    ]
    assert json.loads((folder / "out/conditions.json").read_text(encoding="utf-8")) == found
    meta = json.loads((folder / "out/S+V+L.jsonl.meta.json").read_text(encoding="utf-8"))
    assert (meta["images"], meta["captions"], meta["utterances"]) == (True, True, 6)
    assert [wording for wording, _ in listener.asked] == [None] * 6 + [0, 1, 2, 3, 0, 1]
    assert {name: len(table["conditions"]) for name, table in worded["wordings"].items()} == {"S": 4, "S+V": 2}
    assert worded["wordings"]["S"]["conditions"]["请将这段语音转化为文字"]["difference"]["points"] > 0


def test_what_is_there_is_kept_and_what_has_changed_is_made_anew(folder):
    job = ConditionsJob(folder / "cuts.jsonl.gz", folder / "out")
    first = Listener()
    found, _ = run_conditions(job, first.recogniser, normal_form(False))
    (folder / "out/S+blank.jsonl.meta.json").unlink()  # killed on the way
    again = Listener()
    rows = run_conditions(job, again.recogniser, normal_form(False))[0]["conditions"]
    assert {name: row["cer"] for name, row in rows.items()} == {name: row["cer"] for name, row in found["conditions"].items()}
    assert len(again.asked) == 1
    Image.new("RGB", (16, 16), "black").save(folder / "green.png")
    changed = Listener()
    run_conditions(job, changed.recogniser, normal_form(False))
    assert len(changed.asked) == 4  # right, wrong, grey (of another level) and right with captions
    other = Listener()
    run_conditions(ConditionsJob(folder / "cuts.jsonl.gz", folder / "out", seed=1), other.recogniser, normal_form(False))
    assert len(other.asked) <= 1  # of the wrong images alone


def test_what_a_model_or_a_set_has_nothing_for_is_left_out_with_a_sentence(folder):
    job = ConditionsJob(folder / "cuts.jsonl.gz", folder / "out")
    plan = plan_conditions(job, {"caption": "no encoder of captions"})
    assert list(plan.images) == ["S", "S+V", "S+wrong", "S+blank"]
    assert plan.left_out == {"S+L": "no encoder of captions", "S+V+L": "no encoder of captions"}
    with pytest.raises(ConfigError, match=r"nothing to compare: S\+V: blind; S\+wrong: blind"):
        plan_conditions(job, {"caption": "no encoder", "image": "blind"})
    alike = [load_file(folder / "u0.wav"), load_file(folder / "u1.wav")]
    for cut in alike:
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text="字")]
        cut.custom = {"image": str(folder / "red.png")}
    save_cuts(alike, folder / "alike.jsonl.gz")
    plan = plan_conditions(ConditionsJob(folder / "alike.jsonl.gz", folder / "out"), {})
    assert "all pictures of" in plan.left_out["S+wrong"]
    assert "has a caption" in plan.left_out["S+L"]
    with pytest.raises(ConfigError, match="name at least two"):
        plan_conditions(ConditionsJob(folder / "cuts.jsonl.gz", folder / "out", ["S"]), {})
    with pytest.raises(ConfigError, match="a name comes twice"):
        ConditionsJob(folder / "cuts.jsonl.gz", folder / "out", ["S", "S"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cuts: setattr(cuts[1], "supervisions", []), "u1: no transcript"),
        (lambda cuts: cuts.append(cuts[0]), "u0: the id stands on two cuts"),
        (lambda cuts: cuts[0].supervisions.append(cuts[0].supervisions[0]), "u0: 2 supervisions"),
    ],
)
def test_a_set_that_cannot_be_scored_is_refused(folder, spoil, message):
    from xllm_speech.manifests.cuts import load_cuts

    cuts = list(load_cuts(folder / "cuts.jsonl.gz"))
    spoil(cuts)
    with pytest.raises(DataError, match=message):
        read_items(cuts)


def test_the_command_compares_an_xllm_under_all_conditions_and_wordings(folder, xllm_dir, model_dir, capsys):
    words = ["conditions", "--cuts", str(folder / "cuts.jsonl.gz"), "--device", "cpu", "--limit", "3"]
    llm = [*words, "--model", str(xllm_dir), "--method", "llm", "--max-tokens", "6", "--no-guard", "--wordings"]
    assert entry.main([*llm, "--out", str(folder / "llm")]) == 0
    shown = capsys.readouterr()
    assert "S+V under every wording" in shown.out
    assert "what the LLM makes of it unprepared" in shown.out
    assert "S, wording 3: 3 utterances" in shown.err
    found = json.loads((folder / "llm/conditions.json").read_text(encoding="utf-8"))
    assert {row["counts"]["N"] for row in found["conditions"].values()} == {21}
    texts = {
        name: [json.loads(line)["text"] for line in (folder / f"llm/{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in CONDITIONS
    }
    assert len({tuple(rows) for rows in texts.values()}) == 6  # what is seen and read changes what a chance model writes
    told = ["--with-captions", "--max-tokens", "6", "--no-guard", "--device", "cpu", "--out", str(folder / "told.jsonl")]
    words_of_transcribe = ["transcribe", "--method", "llm", "--model", str(xllm_dir), "--cuts", str(folder / "cuts.jsonl.gz")]
    assert entry.main([*words_of_transcribe, *told]) == 0
    lines = (folder / "told.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines[:3]] == texts["S+V+L"]
    assert json.loads((folder / "told.jsonl.meta.json").read_text())["captions"] is True
    capsys.readouterr()
    assert entry.main([*words, "--model", str(model_dir), "--out", str(folder / "cif")]) == 1
    assert "was trained without pictures" in capsys.readouterr().err
    assert entry.main([*words, "--model", str(model_dir), "--out", str(folder / "cif"), "--wordings"]) == 1
    assert "takes no instruction" in capsys.readouterr().err


def test_a_cif_model_with_both_encoders_takes_all_six(folder, xllm_parts, tmp_path_factory):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from xllm_speech.infer.conditions import load_recogniser
    from xllm_speech.models.asr import build_asr_model
    from xllm_speech.models.asr_config import (
        AsrModelConfig,
        CifConfig,
        DecoderConfig,
        EncoderConfig,
        LinguisticConfig,
        VisualConfig,
    )
    from xllm_speech.models.checkpoints import FeatureConfig, save_asr
    from xllm_speech.text.tokens import TokenTable

    parts = tmp_path_factory.mktemp("six")
    torch.manual_seed(0)
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"红绿蓝色的圆形旗子一个没有"]
    (parts / "vocab.txt").write_text("\n".join(letters), encoding="utf-8")
    BertTokenizerFast(str(parts / "vocab.txt")).save_pretrained(parts / "bert")
    BertModel(BertConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    )).save_pretrained(parts / "bert")
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2]),
        cif=CifConfig(channels=16),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
        visual=VisualConfig("vit", str(xllm_parts["vision"]), 16), linguistic=LinguisticConfig("bert", str(parts / "bert"), 16),
    )
    table = TokenTable.train(["天地玄黄宇宙洪荒日月盈昃"], "char")
    model = build_asr_model(config, table.size, table.sos_id)
    for weight in model.decoder.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.5)
    model.cmvn.set_statistics(torch.full((80,), 12.0), torch.full((80,), 4.0))
    (parts / "model").mkdir()
    save_asr(parts / "model", model.state_dict(), config, table, FeatureConfig(image_size=32))

    job = ConditionsJob(folder / "cuts.jsonl.gz", folder / "six", guard=False)
    recogniser = load_recogniser(parts / "model", "cif", job, torch.device("cpu"))
    assert recogniser.refusals == {}
    found, worded = run_conditions(job, recogniser, normal_form(False))
    assert (list(found["conditions"]), found["left_out"], worded) == (list(CONDITIONS), {}, None)
    texts = {
        name: tuple(row["text"] for _, row in read_jsonl(folder / f"six/{name}.jsonl")) for name in CONDITIONS
    }
    assert len(set(texts.values())) == 6
    assert {rows[5] for name, rows in texts.items() if "L" not in name} == {texts["S"][5]}  # its picture is broken
    assert texts["S+L"][4] == texts["S"][4]  # it has no caption
