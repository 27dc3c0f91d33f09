"""The mini corpus: the same bytes from the same seed, homophones that only the picture decides, nothing seen of the unseen."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import clips
import dialogues
import drawing
import noise
import numpy as np
import plan
import pytest
import scenes
import soundfile
import voices
from PIL import Image, ImageDraw

from xllm_speech.base.errors import MissingDependency
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.visdial import prepare_visdial

LOCAL = Path(plan.__file__).parent
SMALL = [
    *("--train", "24", "--train-images", "30", "--dev", "4", "--test", "4"),
    *("--train-clips", "4", "--test-clips", "2", "--texts", "20"),
]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, str(LOCAL / "make_corpus.py"), "--out", str(out), *SMALL, *more]


def make(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *more), capture_output=True, text=True, timeout=120, check=False)


def tree(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini") / "corpus"
    done = make(out, "--seed", "5", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pictures() -> list[plan.Picture]:
    return plan.plan_pictures(3, plan.Sizes(train=500, train_images=600, dev=20, test=60))


def test_same_seed_gives_same_bytes_for_any_number_of_jobs(corpus: Path, tmp_path: Path) -> None:
    assert make(tmp_path / "again", "--seed", "5", "--jobs", "3").returncode == 0
    assert tree(tmp_path / "again") == tree(corpus)
    assert make(tmp_path / "again", "--seed", "6", "--jobs", "2").returncode == 0
    other, first = tree(tmp_path / "again"), tree(corpus)
    same = [name for name in first if other.get(name) == first[name]]
    assert not same  # every single file depends on the seed ...
    assert not [name for name in other if name.endswith(".part")]
    named = {"plan.json", "manifest.json", "text.jsonl"}  # ... and nothing of the other seed is left behind
    for table in ("speech.jsonl", "scenes.jsonl", "clips.jsonl"):
        named |= {table, *(row["path"] for _, row in read_jsonl(tmp_path / "again" / table))}
    assert named | {f"visdial_1.0_{split}.json" for split in plan.SPLITS} == set(other)


def test_killed_run_is_continued_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    worker = subprocess.Popen(command(out, "--seed", "5", "--jobs", "2"), start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("images/*/*.png"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)  # the parent alone: its workers must notice
    worker.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("images/*/*.png")}
    if (out / "manifest.json").exists():
        pytest.skip("the run was over before it could be killed")
    done = make(out, "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert "continued" in done.stdout
    assert len(kept) >= 8
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert tree(out) == tree(corpus)


def test_complete_corpus_is_left_alone(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    done = make(corpus, "--seed", "5", "--jobs", "2")
    assert "up to date" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"mine")
    done = make(tmp_path)
    assert done.returncode == 1
    assert "not made by this program" in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(tmp_path).keys() == {"images/holiday.jpg"}


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = make(tmp_path / "file" / "corpus")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "file") in done.stderr


def test_manifest_counts_every_file(corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    files = {name: value for name, value in tree(corpus).items() if name not in ("plan.json", "manifest.json")}
    assert manifest["files"] == len(files)
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    assert manifest["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_held_out_pairs_are_unseen_in_training_and_named_in_their_test(pictures: list[plan.Picture]) -> None:
    assert len(scenes.HELD_OUT) == 8
    words = [f"{colour}色的{shape}" for colour, shape in scenes.HELD_OUT]

    def named(text: str) -> bool:
        return any(word in text for word in words)

    for picture in pictures:
        unseen = picture.subset == "unseen"
        assert named(picture.scene.caption) == unseen
        if not unseen:
            assert not any(named(question.text) for question in picture.dialogue)
    spoken = [picture.utterance.text for picture in pictures if picture.subset == "unseen" and picture.utterance]
    assert sum(map(named, spoken)) > len(spoken) / 2
    texts = "".join(row["caption"] for row in plan.text_rows(3, plan.Sizes(texts=2000)))
    assert all(f"{colour}色的{shape}" in texts for colour, shape in scenes.PAIRS)


def test_homophones_are_decided_by_the_picture(pictures: list[plan.Picture]) -> None:
    counts: Counter[str] = Counter()
    for picture in pictures:
        shown = [thing.shape for thing in picture.scene.things]
        for question in picture.dialogue:
            for shape, twin in scenes.TWINS.items():
                if shape in question.text:
                    assert shape in shown, (picture.scene.caption, question.text)
                    assert twin not in shown, (picture.scene.caption, question.text)
                    counts[shape] += 1
        if picture.subset == "homophone":
            assert picture.utterance is not None
            assert any(shape in picture.utterance.text for shape in scenes.TWINS)
    assert min(counts[shape] for shape in scenes.TWINS) > 20


def answer_from_objects(things: list[tuple[str, str, str]], question: dialogues.Question) -> str:
    """The answer, worked out again from (cell, colour, shape) triples and the words of the question alone."""
    text = question.text
    cells = [cell for cell in scenes.CELLS if cell in text]
    colours = [colour for colour in scenes.COLOURS if f"{colour}色" in text]
    shapes = [shape for shape in scenes.SHAPES if shape in text]
    kept = [
        thing
        for thing in things
        if (not cells or thing[0] in cells) and (not colours or thing[1] in colours) and (not shapes or thing[2] in shapes)
    ]
    if text.startswith(("图里有几个", "图里一共有几个", "图里总共有多少")) or text.endswith("一共有几个"):
        return ("没有", "一个", "两个", "三个")[len(kept)]
    if text.endswith("吗") or text.startswith("有没有"):
        return "有" if kept else "没有"
    assert len(kept) == 1, (things, text)
    cell, colour, shape = kept[0]
    if "颜色" in text:
        return f"{colour}色"
    return cell if text.endswith(("在哪里", "在什么位置")) else shape


def test_answers_are_true(pictures: list[plan.Picture]) -> None:
    kinds: Counter[str] = Counter()
    for picture in pictures:
        things = [(scenes.CELLS[thing.cell], thing.colour, thing.shape) for thing in picture.scene.things]
        assert 1 <= len(things) <= 3
        for question in picture.dialogue:
            assert answer_from_objects(things, question) == question.answer, (things, question)
            assert question.answer in dialogues.ANSWERS
            kinds[question.kind] += 1
    assert len(kinds) == 8
    assert min(kinds.values()) > 100
    wordings = {wording for pair in dialogues.WORDINGS.values() for wording in pair}
    assert len(wordings) == 16


def test_the_best_guess_without_the_picture_is_seldom_right() -> None:
    """What a question alone tells of its answer, learnt from other dialogues: the blind baseline can do no better for long."""
    rng = np.random.default_rng(0)

    def dialogue() -> list[dialogues.Question]:
        question = None
        while question is None:
            scene = scenes.draw_scene(rng)
            want = "homophone" if rng.random() < plan.HOMOPHONE_SHARE else "any"
            question = dialogues.spoken_question(rng, scene, scenes.SEEN_PAIRS, want)
        return dialogues.hold_dialogue(rng, scene, scenes.SEEN_PAIRS, 4, question)

    known: dict[str, Counter[str]] = {}
    for _ in range(3000):
        for question in dialogue():
            known.setdefault(question.text, Counter())[question.answer] += 1
    asked = [question for _ in range(600) for question in dialogue()]
    right = sum(known[one.text].most_common(1)[0][0] == one.answer for one in asked if one.text in known)
    assert right / len(asked) < 0.32


def test_noise_is_where_it_should_be(pictures: list[plan.Picture]) -> None:
    shares: dict[str, list[bool]] = {}
    for picture in pictures:
        if picture.utterance:
            shares.setdefault(picture.subset or picture.split, []).append(picture.utterance.noise is not None)
            assert -5 <= picture.utterance.snr_db <= 5
    assert not any(shares["clean"])
    assert not any(shares["homophone"])
    assert all(shares["noisy"])
    assert 0.34 < np.mean(shares["train"]) < 0.46
    assert 0.2 < np.mean(shares["mixed"]) < 0.6


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("snr_db", [-5.0, 5.0])
def test_noise_has_the_ratio_asked_for(kind: str, snr_db: float) -> None:
    rng = np.random.default_rng(0)
    speech = np.concatenate([np.zeros(4000), np.sin(np.arange(32000) * 0.1), np.zeros(4000)])
    tracks = [noise.mix_babble(rng, [rng.standard_normal(5000), rng.standard_normal(7000)], 96000)]
    sound = (
        noise.cut_babble(rng, tracks, speech.size) if kind == "babble" else noise.coloured_noise(rng, kind, speech.size)
    )
    rest = noise.mix(speech, sound, snr_db, (4000, 36000)) - speech
    ratio = 10 * np.log10(np.mean(speech[4000:36000] ** 2) / np.mean(rest**2))
    assert ratio == pytest.approx(snr_db, abs=0.1)


def test_twins_sound_identical_and_neighbours_do_not() -> None:
    voices.engine_name()
    for variant in voices.VARIANTS:
        flag, piece, clock, cup, star, heart = (
            voices.speak(f"{shape}是什么颜色", variant, 200, 50)
            for shape in ("旗子", "棋子", "钟", "盅", "星形", "心形")
        )
        np.testing.assert_array_equal(flag, piece)
        np.testing.assert_array_equal(clock, cup)
        assert star.shape != heart.shape or not np.array_equal(star, heart)
        assert 0.8 < flag.size / voices.SAMPLE_HZ < 3
        assert np.max(np.abs(flag)) < 1


def test_hanzi_are_read_with_their_tones() -> None:
    spoken = voices.phonemes("红色的钟在哪里")
    if not spoken:
        pytest.skip("espeakng-loader is not installed: phonemes are asked of the wheel only")
    assert [part for part in ("ong35", "o-51", "ts.'ong55", "ai51") if part not in spoken] == []
    assert voices.phonemes("图里有几个棋子") == voices.phonemes("图里有几个旗子")


def test_speech_does_not_depend_on_what_was_said_before() -> None:
    first = voices.speak("左上是什么形状", "f2", 190, 40)
    voices.speak("图里总共有多少东西", "m7", 240, 75)
    np.testing.assert_array_equal(voices.speak("左上是什么形状", "f2", 190, 40), first)


def test_program_serves_where_the_wheel_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "_wheel", lambda: None)
    try:
        name = voices.engine_name()
    except MissingDependency:
        pytest.skip("no program espeak-ng on this machine")
    assert "program" in name
    flag, piece = (voices.speak(f"图里有几个{shape}", "f1", 200, 50) for shape in ("旗子", "棋子"))
    np.testing.assert_array_equal(flag, piece)
    assert 0.8 < flag.size / voices.SAMPLE_HZ < 3  # spelt out as letters it would take far longer


def test_missing_engine_names_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "_wheel", lambda: None)
    monkeypatch.setenv("PATH", "")
    for ask in (voices.engine_name, lambda: voices.speak("钟", "f1", 200, 50)):
        with pytest.raises(MissingDependency) as caught:
            ask()
        assert "pip install espeakng-loader" in str(caught.value)
        assert "apt-get install --no-install-recommends espeak-ng" in str(caught.value)


def test_recordings_are_neither_silent_nor_clipped(corpus: Path) -> None:
    for _, row in read_jsonl(corpus / "speech.jsonl"):
        samples, rate = soundfile.read(corpus / row["path"])
        assert (rate, samples.ndim) == (16000, 1)
        assert 0.2 < np.max(np.abs(samples)) < 0.75
        assert np.any(samples[:100])  # a recorder's floor, never digital silence
        if row["noise"] is None:
            assert np.sqrt(np.mean(samples[:900] ** 2)) < 1e-3 < np.sqrt(np.mean(samples**2))
        else:
            assert np.sqrt(np.mean(samples[:900] ** 2)) > 1e-3


def test_shapes_look_different() -> None:
    masks = []
    for shape in scenes.SHAPES:
        canvas = Image.new("RGB", (drawing.SIDE * drawing.SCALE,) * 2)
        drawing.draw_shape(ImageDraw.Draw(canvas), shape, (32, 32), 11.5, (255, 255, 255), (0, 0, 0))
        masks.append(np.asarray(canvas.reduce(drawing.SCALE))[..., 0] > 128)
    for one in range(len(masks)):
        assert masks[one].sum() > 60
        for other in range(one):
            overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert overlap < 0.8, (scenes.SHAPES[one], scenes.SHAPES[other], overlap)


def test_pictures_show_their_colours_in_their_places(corpus: Path) -> None:
    digests = set()
    for _, row in read_jsonl(corpus / "scenes.jsonl"):
        picture = np.asarray(Image.open(corpus / row["path"]), dtype=float)
        assert picture.shape == (64, 64, 3)
        digests.add(picture.tobytes())
        busy = {thing["cell"] for thing in row["objects"]}
        for thing in row["objects"]:
            left, top, right, bottom = (round(value) for value in thing["box"])
            patch = picture[max(top, 0) : bottom, max(left, 0) : right].reshape(-1, 3)
            middle = np.median(patch[patch.max(axis=1) > 110], axis=0)
            distances = {name: np.abs(np.array(rgb) - middle).sum() for name, rgb in scenes.COLOURS.items()}
            assert min(distances, key=lambda name: distances[name]) == thing["colour"]
        for cell in set(range(4)) - busy:
            middle = picture[16 + 32 * (cell // 2) - 6 :, 16 + 32 * (cell % 2) - 6 :][:12, :12]
            assert middle.mean() < 70
    assert len(digests) == 30 + 4 + 5 * 4  # no picture twice, so none of a test set was trained on


def test_clips_move_as_their_captions_say(corpus: Path) -> None:
    rows = [row for _, row in read_jsonl(corpus / "clips.jsonl")]
    assert len(rows) == 6
    for row in rows:
        with av.open(str(corpus / row["path"])) as container:
            frames = [frame.to_ndarray(format="rgb24").max(axis=2) for frame in container.decode(video=0)]
        assert len(frames) == clips.FRAMES
        centres = []
        for frame in frames:
            y, x = np.nonzero(frame > 110)
            centres.append((x.mean(), y.mean()))
        move = np.subtract(centres[-1], centres[0])
        axis = int(np.argmax(np.abs(move)))
        sign = int(np.sign(move[axis]))
        assert abs(move[axis]) > 20
        direction = next(name for name, step in clips.DIRECTIONS.items() if step[axis] == sign)
        assert row["caption"] == f"{row['colour']}色的{row['shape']}向{direction}移动"
        assert row["answer"] == f"向{direction}"
        assert not (row["held_out"] and row["split"] == "train")


def test_corpus_becomes_manifests(corpus: Path, tmp_path: Path) -> None:
    from lhotse import CutSet

    counts = prepare_visdial(corpus, tmp_path, max_rejected=0.0)
    assert counts["rejected"] == 0
    assert counts["train.cuts"] == 24
    assert counts["dev.cuts"] == 4
    spoken = {row["id"]: row for _, row in read_jsonl(corpus / "speech.jsonl")}
    for name in plan.TEST_SETS:
        assert counts[f"test_{name}.cuts"] == 4
        assert counts[f"test_{name}.dialogs"] == 4
        for cut in CutSet.from_jsonl_lazy(tmp_path / f"test_{name}" / "cuts.jsonl.gz"):
            assert spoken[cut.id]["sets"] == [name]
            assert cut.supervisions[0].text == spoken[cut.id]["text"]
            assert cut.load_audio().shape == (1, cut.num_samples)
            assert Path(cut.custom["image"]).is_file()
    # each training picture: a caption and four typed questions; each utterance: a spoken one
    assert counts["train.conversations"] == 30 * 5 + 24
