"""Writes each corpus in its exact form on disk at toy size: what `xllm-speech prepare CORPUS` reads (data.md, Corpora)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

LLAVA_TEST_ID = 441147  # one of the 30 pictures that no training data may hold
SENTENCES = ("而 对 楼市 成交 抑制 作用 最 大 的 限 购", "广州市 房地产 中介", "听 Yesterday Once More", "T 恤 三 十 二 度")


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def wav(path: Path, seconds: float = 0.3, rate_hz: int = 16000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    soundfile.write(path, noise, rate_hz, subtype="PCM_16")
    return path


def picture(path: Path, width: int = 48, height: int = 36, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def clip(path: Path, frames: int = 10, rate_hz: int = 5) -> Path:
    """A clip of moving noise, `frames` pictures long."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate_hz)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def truncate(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def aishell1(top: Path, speakers: int = 2, utterances: int = 4) -> Path:
    """data_aishell with all three sets; ids as BAC009S0002W0122; words are parted by blanks."""
    folder, lines = top / "data_aishell", []
    for place, name in enumerate(("train", "dev", "test")):
        for speaker in range(1, 1 + speakers):
            code = f"S{100 * place + speaker:04d}"
            for number in range(utterances):
                utterance = f"BAC009{code}W{number:04d}"
                wav(folder / "wav" / name / code / f"{utterance}.wav", 0.2 + 0.01 * number, seed=number)
                lines.append(f"{utterance} {SENTENCES[number % len(SENTENCES)]}\n")
    (folder / "transcript").mkdir()
    (folder / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def aishell2_set(folder: Path, prefix: str, utterances: int = 4) -> Path:
    table, words = [], []
    for number in range(utterances):
        utterance = f"{prefix}W{number:04d}"
        path = f"wav/{prefix[1:]}/{utterance}.wav"
        wav(folder / path, 0.2, seed=number)
        table.append(f"{utterance}\t{path}\n")
        words.append(f"{utterance}\t{SENTENCES[number % len(SENTENCES)].replace(' ', '')}\n")
    (folder / "wav.scp").write_text("".join(table), encoding="utf-8")
    (folder / "trans.txt").write_text("".join(words), encoding="utf-8")
    return folder


def aishell2(top: Path) -> Path:
    """AISHELL-2/iOS/data, and dev and test of the three devices in the archive that they come in."""
    aishell2_set(top / "AISHELL-2" / "iOS" / "data", "IC0001", 6)
    for device, letter in (("iOS", "I"), ("Android", "A"), ("Mic", "M")):
        for part, speaker in (("dev", "D0012"), ("test", "T0013")):
            aishell2_set(top / "AISHELL-2" / "AISHELL-DEV-TEST-SET" / device / part, letter + speaker, 3)
    return top


def coco(top: Path, split: str = "val2014", images: int = 3) -> Path:
    """captions_<split>.json with two captions per picture, the LLaVA-test picture among them; pictures beside it."""
    ids = [*range(1, images), LLAVA_TEST_ID]
    names = {image: f"COCO_{split}_{image:012d}.jpg" for image in ids}
    for image, name in names.items():
        picture(top / split / name, seed=image)
    value = {
        "info": {"description": "COCO 2014 Dataset"}, "licenses": [],
        "images": [{"id": image, "file_name": name, "width": 48, "height": 36} for image, name in names.items()],
        "annotations": [
            {"image_id": image, "id": 10 * image + place, "caption": text.format(image)}
            for place, text in enumerate(("Picture {}.", " A picture  {}.\n")) for image in ids
        ],
    }
    return write_json(top / "annotations" / f"captions_{split}.json", value)


def flickr30k(top: Path, images: int = 2) -> Path:
    lines = []
    for image in range(images):
        picture(top / "flickr30k-images" / f"{1000 + image}.jpg", seed=image)
        lines += [f"{1000 + image}.jpg#{place}\tTwo dogs , number {place} .\n" for place in range(5)]
    (top / "results_20130124.token").write_text("".join(lines), encoding="utf-8")
    return top / "results_20130124.token"


def aic(top: Path, images: int = 2) -> Path:
    names = [hashlib.sha1(str(image).encode(), usedforsecurity=False).hexdigest() + ".jpg" for image in range(images)]
    for place, name in enumerate(names):
        picture(top / "caption_train_images_20170902" / name, seed=place)
    captions = ["一个人在海边", "海边有一个人", "沙滩上的人", "一个穿红衣的人", "大海边站着一个人"]
    rows = [{"url": "http://img", "image_id": name, "caption": captions} for name in names]
    return write_json(top / "caption_train_annotations_20170902.json", rows)


def visual_genome(top: Path) -> Path:
    """region_descriptions.json with image_data.json beside it: picture 3 is the LLaVA-test one of COCO."""
    for image, folder in ((1, "VG_100K"), (2, "VG_100K_2"), (3, "VG_100K")):
        picture(top / folder / f"{image}.jpg", seed=image)
    sides = ((0, 0, 40, 30), (5, 5, 4, 4))
    regions = [
        {"id": image, "regions": [
            {"region_id": 10 * image + place, "image_id": image, "phrase": f"region {place} of {image}",
             **dict(zip(("x", "y", "width", "height"), side, strict=True))} for place, side in enumerate(sides)
        ]} for image in (1, 2, 3)
    ]
    write_json(top / "image_data.json", [
        {"image_id": image, "coco_id": LLAVA_TEST_ID if image == 3 else None, "width": 48, "height": 36} for image in (1, 2, 3)
    ])
    return write_json(top / "region_descriptions.json", regions)


def minigpt4(top: Path, images: int = 3) -> Path:
    for image in range(images):
        picture(top / "image" / f"{image}.jpg", seed=image)
    rows = [{"image_id": str(image), "caption": f"The image shows thing {image}."} for image in range(images)]
    return write_json(top / "filter_cap.json", {"annotations": rows})


def web_rows(count: int = 4) -> list[tuple[str, str]]:
    return [(f"http://pictures.example/{row}.jpg", f'a "caption", number {row}') for row in range(count)]


def download(folder: Path, urls: list[str], naming: str = "md5") -> None:
    for row, url in enumerate(urls):
        name = f"{row:09d}" if naming == "row" else hashlib.new(naming, url.encode(), usedforsecurity=False).hexdigest()
        picture(folder / f"{name}.jpg", seed=row)


def cc3m(top: Path, rows: list[tuple[str, str]]) -> Path:
    top.mkdir(parents=True, exist_ok=True)
    path = top / "Train_GCC-training.tsv"
    path.write_text("".join(f"{caption}\t{url}\n" for url, caption in rows), encoding="utf-8")
    return path


def sbu(top: Path, rows: list[tuple[str, str]]) -> Path:
    top.mkdir(parents=True, exist_ok=True)
    (top / "SBU_captioned_photo_dataset_captions.txt").write_text("".join(f"{text}\n" for _, text in rows), encoding="utf-8")
    path = top / "SBU_captioned_photo_dataset_urls.txt"
    path.write_text("".join(f"{url}\n" for url, _ in rows), encoding="utf-8")
    return path


def wukong(top: Path, rows: list[tuple[str, str]], number: int = 0) -> Path:
    import csv

    top.mkdir(parents=True, exist_ok=True)
    path = top / f"wukong_100m_{number}.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("url", "caption"))
        writer.writerows(rows)
    return path


def msrvtt(top: Path) -> Path:
    """Three clips, one in each set, with two sentences each."""
    videos = [
        {"category": 9, "url": "https://video", "video_id": f"video{number}", "start time": 1.5, "end time": 9.0,
         "split": split, "id": number} for number, split in enumerate(("train", "validate", "test"))
    ]
    for video in videos:
        clip(top / "videos" / f"{video['video_id']}.mp4")
    sentences = [
        {"caption": f"{' ' * place}someone does {number}", "video_id": f"video{number}", "sen_id": 2 * number + place}
        for number in range(3) for place in range(2)
    ]
    value = {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}
    return write_json(top / "train_val_videodatainfo.json", value)


def activitynet(top: Path) -> Path:
    clip(top / "videos" / "v_aaaaaaaaaaa.mp4")
    clip(top / "videos" / "v_bbbbbbbbbbb.mp4")
    return write_json(top / "val_1.json", {
        "v_aaaaaaaaaaa": {"duration": 2.0, "timestamps": [[1.0, 2.4], [0, 1.0]], "sentences": ["  He ends.", "He begins."]},
        "v_bbbbbbbbbbb": {"duration": 2.0, "timestamps": [[0.1, 1.9]], "sentences": ["A dog runs."]},
    })


def avsd(top: Path) -> Path:
    clip(top / "videos" / "ABCDE.mp4")
    turns = [{"question": f"question {place} ?", "answer": f"answer {place}"} for place in range(3)]
    dialog = {"image_id": "ABCDE", "caption": "a man sits .", "summary": "he sits", "dialog": turns}
    return write_json(top / "train_set4DSTC7-AVSD.json", {"type": "scene_aware_dialog", "version": "0.1", "dialogs": [dialog]})


def released(top: Path) -> dict[str, Path]:
    """One file of each kind that the authors' data sets read, with the paths of a machine that is not here."""
    for name in ("train2014/COCO_train2014_000000000009.jpg", "10.jpg", "test/VisualDialog_test2018_000000000077.jpg"):
        picture(top / "images" / name)
    clip(top / "videos" / "v_aaaaaaaaaaa.mp4")
    for name in ("u1", "u2", "u3"):
        (top / "units").mkdir(exist_ok=True)
        np.save(top / "units" / f"{name}.npy", np.ones((4, 512), dtype=np.float32))
    there = "/raid/data"
    coco_name = f"{there}/coco/train2014/COCO_train2014_000000000009.jpg"
    rows: dict[str, list[dict[str, Any]]] = {
        "caption": [{"image": coco_name, "caption": "一只狗。", "dataset": "coco"}],
        "vl": [{"image_id": "10", "caption": "english", "caption_zh": "一群鸭子"}],
        "video": [{"image_id": "v_aaaaaaaaaaa", "caption_zh": "一个人在跑"}],
        "asr": [{"utterance_id": "u1", "speech_feats_path": f"{there}/shards/u1.npy", "target_text": "设定三十二度"}],
        "masr": [
            {"speech_feats_path": f"{there}/u2.npy", "target_text": "天气如何",
             "image": f"{there}/test/VisualDialog_test2018_000000000077.jpg"},
            {"speech_feats_path": f"{there}/u2.npy", "question_text": "天气如何", "image_path": coco_name},
        ],
        "vsd": [{"speech_feats_path": f"{there}/u3.npy", "image_path": coco_name, "answer_text": "两个",
                 "question_text": "几个", "history_text": "问题：有人吗回复：有问题：在哪里回复：左边"}],
        "question": [{"question_id": 0, "image": f"{LLAVA_TEST_ID:012d}.jpg", "text": "What?", "text_zh": "是什么？"}],
    }
    picture(top / "images" / f"{LLAVA_TEST_ID:012d}.jpg")
    return {kind: write_json(top / f"{kind}_zh.json", value) for kind, value in rows.items()}


def visdial(top: Path, split: str = "train", ids: tuple[int, ...] = (9, 25, LLAVA_TEST_ID)) -> Path:
    """visdial_1.0_<split>.json and its pictures. Pools hold more than is used; the test split ends without an answer."""
    questions = ["is it sunny", "how many people", "Is it sunny?", "what color", "never asked"]
    answers = ["yes", "2", "no ", "red"]
    prefix = {"train": "COCO_train2014", "val": "VisualDialog_val2018", "test": "VisualDialog_test2018"}[split]
    dialogs = []
    for place, image in enumerate(ids):
        picture(top / "images" / f"{prefix}_{image:012d}.jpg", seed=image)
        turns: list[dict[str, Any]] = [
            {"question": (place + number) % 4, "answer": number % 4, "answer_options": [3, number % 4], "gt_index": 1}
            for number in range(4)
        ]
        if split == "test":
            turns[-1] = {"question": 3, "answer_options": [1, 2]}
        dialogs.append({"image_id": image, "caption": f"picture {image}", "dialog": turns})
    name = {"train": "train", "val": "val2018", "test": "test2018"}[split]
    data = {"questions": questions, "answers": answers, "dialogs": dialogs}
    return write_json(top / f"visdial_1.0_{split}.json", {"version": "1.0", "split": name, "data": data})
