"""Say which corpora and weights of a recipe are not there, where to get them, how large they are, and which stages need them.

    python3 check_weights.py --stage 0 --stop-stage 99 aishell2@1-2:--corpus-dir=/data/AISHELL-2 ...

Each word is NAME@STAGES:OPTION=PATH: an input of the table below, the stages that read it (such as 1,11-13), the recipe's
option that names its place, and that place. Only what the stages in the range need is looked for. The exit status is 1 where
something is missing, and 0 with --plan, which only tells. Nothing is downloaded: most corpora ask for an agreement first.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path


class BadWord(ValueError):
    """A word on the command line that tells no input; this script needs nothing beside Python, so that a plan needs nothing."""



@dataclass(frozen=True)
class Source:
    """An input. parts: patterns below its folder that must each match, alternatives parted by `|`; none: a file or folder.

    size: on the disk, unpacked; roughly.
    """

    title: str
    size: str
    where: str
    parts: tuple[str, ...] = ()


# Sizes: the publishers' where they tell them (COCO 13 + 6 GB; Visual Genome 9.2 + 5.5 GB of pictures; weights as on their
# pages), else what follows from the content: hours of 16 bits at 16 kHz (AISHELL-1 178 h, AISHELL-2 1000 h and its test sets),
# and some 140 kB to a picture (VisDial, Flickr30k, SBU, AI Challenger). Of the web it depends on how large pictures are kept.
_HF = "on the Hugging Face hub"
_TRANSFORMERS = ("config.json", "*.safetensors|*.bin")
SOURCES: dict[str, Source] = {
    "aishell1": Source("AISHELL-1", "20 GB", "https://www.openslr.org/33/, data_aishell.tgz and the archives in it",
                       ("data_aishell/transcript/*.txt|transcript/*.txt", "data_aishell/wav/*/|wav/*/")),
    "aishell2": Source("AISHELL-2 with its development and test sets", "120 GB",
                       "http://www.aishelltech.com/aishell_2, on application",
                       ("iOS/data/trans.txt|AISHELL-2/iOS/data/trans.txt",
                        "iOS/test/trans.txt|*/iOS/test/trans.txt|*/*/iOS/test/trans.txt")),
    "visdial": Source("VisDial v1.0, and its pictures of the val and test sets", "3 GB", "https://visualdialog.org/data",
                      ("visdial_1.0_train.json", "visdial_1.0_val.json", "visdial_1.0_test.json")),
    "coco": Source("MS COCO 2014: captions, pictures of train and val", "20 GB", "https://cocodataset.org/#download",
                   ("annotations/captions_train2014.json", "annotations/captions_val2014.json", "train2014/", "val2014/")),
    "flickr30k": Source("Flickr30k", "5 GB", "https://shannon.cs.illinois.edu/DenotationGraph/, on application",
                        ("results_20130124.token|*/results_20130124.token", "flickr30k-images/|*/flickr30k-images/")),
    "aic": Source("AI Challenger captions", "30 GB",
                  "https://github.com/AIChallenger/AI_Challenger_2017, image captioning in Chinese",
                  ("caption_train_annotations_*.json|*/caption_train_annotations_*.json",
                   "caption_train_images_*/|*/caption_train_images_*/")),
    "visual-genome": Source("Visual Genome 1.2: region descriptions, image data, pictures", "17 GB",
                            "https://homes.cs.washington.edu/~ranjay/visualgenome/",
                            ("region_descriptions.json", "image_data.json", "VG_100K/")),
    "cc3m": Source("Conceptual Captions 3M, pictures downloaded into images/", "50 GB at 256 pixels, 400 GB at full size",
                   "https://ai.google.com/research/ConceptualCaptions/download; the pictures e.g. with img2dataset",
                   ("Train_GCC-training.tsv*", "images/")),
    "sbu": Source("SBU captions, pictures downloaded into images/", "120 GB",
                  "https://www.cs.rice.edu/~vo9/sbucaptions/; the pictures e.g. with img2dataset",
                  ("SBU_captioned_photo_dataset_urls.txt|dataset/SBU_captioned_photo_dataset_urls.txt", "images/")),
    "wukong": Source("Wukong (100M), pictures downloaded into images/", "1 TB at 256 pixels, several at full size",
                     "https://wukong-dataset.github.io/wukong-dataset/; the pictures e.g. with img2dataset",
                     ("wukong_100m_*.csv|*/wukong_100m_*.csv", "images/")),
    "msrvtt": Source("MSR-VTT: annotations and clips", "7 GB",
                     "Microsoft Research, MSR-VTT (Xu et al., CVPR 2016)",
                     ("train_val_videodatainfo.json|*/train_val_videodatainfo.json", "videos/|TrainValVideo/")),
    "activitynet": Source("ActivityNet Captions, and the clips in videos/", "300 GB",
                          "https://cs.stanford.edu/people/ranjaykrishna/densevid/ and http://activity-net.org/download.html",
                          ("train.json|*/train.json|val_1.json", "videos/")),
    "minigpt4": Source("cc_sbu_align of MiniGPT-4", "1 GB",
                       "https://github.com/Vision-CAIR/MiniGPT-4, dataset/README_2_STAGE.md",
                       ("filter_cap.json", "image/")),
    "llava": Source("LLaVA-test: questions, GPT-4's answers, contexts", "1 MB",
                    "https://github.com/phellonchen/X-LLM, its evaluation",
                    ("question90_zh.json", "question90.jsonl", "qa90_gpt4_answer.jsonl")),
    "chatglm": Source("ChatGLM-6B", "13 GB", f"zai-org/chatglm-6b (before: THUDM/chatglm-6b) {_HF}",
                      ("config.json", "ice_text.model", "*.safetensors|*.bin")),
    "bert": Source("bert-base-chinese", "0.4 GB", f"google-bert/bert-base-chinese {_HF}",
                   (*_TRANSFORMERS, "vocab.txt|tokenizer.json")),
    "clip": Source("CLIP ViT-B/16", "0.6 GB", f"openai/clip-vit-base-patch16 {_HF}", _TRANSFORMERS),
    "similarity": Source("CLIP or Chinese-CLIP, for the filter of Wukong", "0.8 GB",
                         f"openai/clip-vit-base-patch16 or OFA-Sys/chinese-clip-vit-base-patch16 {_HF}", _TRANSFORMERS),
    "blip2": Source("BLIP-2, second stage, OPT 6.7B: its Q-Former", "0.4 GB",
                    "LAVIS (https://github.com/salesforce/LAVIS), model zoo: blip2_pretrained_opt6.7b.pth"),
    "eva": Source("EVA ViT-g as BLIP-2 has it", "2 GB",
                  "LAVIS (https://github.com/salesforce/LAVIS), model zoo: eva_vit_g.pth"),
    "mbart": Source("mBART-50 many-to-many, to translate", "2.4 GB", f"facebook/mbart-large-50-many-to-many-mmt {_HF}",
                    _TRANSFORMERS),
    "tts": Source("an espnet2 text-to-speech model of AISHELL-3", "0.3 GB",
                  "ESPnet (https://github.com/espnet/espnet), egs2/aishell3/tts1; or another voice with --speech-options",
                  ("config.yaml", "*.pth")),
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """An input of a recipe: what it is, the stages that read it, the option for its place, and the place."""

    source: Source
    stages: str
    option: str
    path: str


def parse_wanted(word: str) -> Wanted:
    """NAME@STAGES:OPTION=PATH; `BadWord` for what is none."""
    head, colon, tail = word.partition(":")
    name, at, stages = head.partition("@")
    option, equals, path = tail.partition("=")
    if not (colon and at and equals and option):
        raise BadWord(f"`{word}`: expected NAME@STAGES:OPTION=PATH, for example aishell2@1:--corpus-dir=/data/AISHELL-2")
    if name not in SOURCES:
        raise BadWord(f"`{word}`: `{name}` is not one of {', '.join(SOURCES)}")
    stage_numbers(stages)
    return Wanted(SOURCES[name], stages, option, path)


def stage_numbers(stages: str) -> set[int]:
    """`1,11-13` -> {1, 11, 12, 13}."""
    numbers: set[int] = set()
    for part in stages.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise BadWord(f"stages `{stages}`: expected numbers and ranges such as 1,11-13")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def find_fault(source: Source, path: str) -> str | None:
    """What is missing at a place; None where all of it is there."""
    place = Path(path)
    if not path:
        return "no place named"
    if not place.exists():
        return f"{path}: not there"
    if source.parts and not place.is_dir():
        return f"{path}: not a folder"
    for part in source.parts:
        if not any(_matches(place, pattern) for pattern in part.split("|")):
            return f"{path}: holds no {part.replace('|', ', and no ')}"
    return None


def _matches(place: Path, pattern: str) -> bool:
    if pattern.endswith("/"):
        return any(found.is_dir() for found in place.glob(pattern.rstrip("/")))
    return next(place.glob(pattern), None) is not None


def main() -> int:
    """Entry; the exit status is 1 where something is missing."""
    parser = argparse.ArgumentParser(description="Say which corpora and weights of a recipe are missing.")
    parser.add_argument("inputs", nargs="+", metavar="NAME@STAGES:OPTION=PATH", help="what the recipe reads")
    parser.add_argument("--stage", type=int, default=0, metavar="N", help="first stage of the run (0)")
    parser.add_argument("--stop-stage", type=int, default=99, metavar="N", help="last stage of the run (99)")
    parser.add_argument("--plan", action="store_true", help="only tell; the exit status is 0 all the same")
    args = parser.parse_args()
    try:
        inputs = [parse_wanted(word) for word in args.inputs]
    except BadWord as error:
        print(f"check_weights: {error}", file=sys.stderr)
        return 2
    chosen = [row for row in inputs if stage_numbers(row.stages) & set(range(args.stage, args.stop_stage + 1))]
    missing = [(row, fault) for row in chosen if (fault := find_fault(row.source, row.path)) is not None]
    if not missing:
        print(f"corpora and weights: all {len(chosen)} that these stages need are there", file=sys.stderr)
        return 0
    print(f"{len(missing)} of {len(chosen)} corpora and weights are missing:", file=sys.stderr)
    for row, fault in missing:
        lines = (
            f"  {row.source.title} (about {row.source.size}), for stage {row.stages}",
            f"    {fault}; name its place with {row.option}", f"    from: {row.source.where}",
        )
        print(*lines, sep="\n", file=sys.stderr)
    if not args.plan:
        print("Nothing was started. A range that needs less: --stage and --stop-stage; the plan: --dry-run", file=sys.stderr)
    return 0 if args.plan else 1


if __name__ == "__main__":
    sys.exit(main())
