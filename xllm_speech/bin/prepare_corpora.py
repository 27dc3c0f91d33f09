"""The corpora of `xllm-speech prepare`: from parsed options to the function that does it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from xllm_speech.base.errors import ConfigError

# Captions of pictures, and of videos: sub-command -> (help, what --annotations names).
PICTURE_CORPORA = {
    "coco": ("MS COCO captions", "captions_train2014.json ..."),
    "flickr30k": ("Flickr30k captions", "results_20130124.token"),
    "aic": ("AI-Challenger captions", "caption_train_annotations_20170902.json ..."),
    "visual-genome": ("Visual Genome region descriptions", "region_descriptions.json"),
    "minigpt4": ("MiniGPT-4's cc_sbu_align", "filter_cap.json"),
}
WEB_CORPORA = {
    "cc3m": ("Conceptual Captions 3M", "Train_GCC-training.tsv ..., or any csv or tsv of url or path and caption"),
    "sbu": ("SBU captions", "SBU_captioned_photo_dataset_urls.txt (captions beside it), .json, csv or tsv"),
    "wukong": ("Wukong", "wukong_100m_0.csv ..."),
}
VIDEO_CORPORA = {
    "msrvtt": ("MSR-VTT", "train_val_videodatainfo.json ..."),
    "activitynet": ("ActivityNet Captions", "train.json val_1.json ..."),
    "avsd": ("dialogues of AVSD", "train_set4DSTC7-AVSD.json ..."),
}
# Kind -> (the paper's or the release's count, its manifest).
INSTRUCTION_KINDS = {
    "vl": (3500, "conversations about pictures (minigpt4, translated)"),
    "asr": (2000, "cuts with transcripts (aishell2 train)"),
    "video": (1000, "conversations about clips (activitynet, translated)"),
    "vsd": (1000, "conversations with spoken questions (vsdial-cn train)"),
    "masr": (2000, "cuts with pictures (vsdial-cn train)"),
}


def prepare_corpus(args: argparse.Namespace) -> dict[str, float]:
    """Prepare what `args.kind` names; returns its counts."""
    match args.kind:
        case "aishell1":
            from xllm_speech.manifests.aishell import prepare_aishell1

            return prepare_aishell1(args.corpus, args.out, args.jobs, args.max_rejected)
        case "aishell2":
            from xllm_speech.manifests.aishell import prepare_aishell2

            return prepare_aishell2(args.corpus, args.out, args.jobs, args.max_rejected)
        case corpus if corpus in PICTURE_CORPORA:
            return _captions(args)
        case corpus if corpus in WEB_CORPORA:
            return _web_images(args)
        case corpus if corpus in VIDEO_CORPORA:
            from xllm_speech.manifests.videos import prepare_videos

            return prepare_videos(
                corpus, args.annotations, args.videos, args.out, args.jobs, args.max_rejected, not args.skip_media,
                corpus == "activitynet" and args.events,
            )
        case "similarity":
            from xllm_speech.datasets.similarity import ClipScorer, score_manifest

            if args.batch_size < 1:
                raise ConfigError(f"--batch-size {args.batch_size} must be at least 1")
            return score_manifest(args.input, args.out, ClipScorer(args.clip, args.device), args.batch_size)
        case "released":
            from xllm_speech.manifests.released import prepare_released
            from xllm_speech.prompts.instructions import INSTRUCTIONS

            return prepare_released(
                args.annotations, args.out, args.images, args.videos, args.units, INSTRUCTIONS["caption"], args.jobs,
                args.max_rejected, not args.skip_media,
            )
        case "visdial-texts":
            from xllm_speech.manifests.visdial_source import prepare_visdial_texts

            return prepare_visdial_texts(args.annotations, args.out, args.max_rejected)
        case "translate":
            return _translate(args)
        case "synthesise":
            return _synthesise(args)
        case "speech-cuts":
            from xllm_speech.base.files import write_jsonl
            from xllm_speech.datasets.round_trip import speech_cuts

            return {"cuts": write_jsonl(args.out, speech_cuts(args.speech))}
        case "round-trip":
            from xllm_speech.datasets.round_trip import keep_understood

            return keep_understood(args.out, args.heard, args.speech, args.cuts, args.max_cer, args.max_dropped)
        case "vsdial-cn":
            from xllm_speech.manifests.vsdial_cn import VsdialSettings, prepare_vsdial_cn

            settings = VsdialSettings(str(args.translations) if args.translations else None, args.test_count, args.seed)
            return prepare_vsdial_cn(
                settings, args.annotations, args.speech, args.images, args.out, args.art, args.test_speech, args.jobs,
                args.max_rejected,
            )
        case _:
            return _instructions(args)


def _captions(args: argparse.Namespace) -> dict[str, float]:
    from xllm_speech.manifests.captions import CaptionSettings, prepare_captions
    from xllm_speech.prompts.instructions import INSTRUCTIONS

    settings = CaptionSettings(args.kind, drop_repeats=args.drop_repeats)
    if args.kind == "minigpt4":
        settings = CaptionSettings(args.kind, tuple(INSTRUCTIONS["caption"]), args.seed, drop_repeats=args.drop_repeats)
    elif args.kind == "visual-genome":
        settings = CaptionSettings(
            args.kind, image_data=args.image_data, min_region=args.min_region, drop_repeats=args.drop_repeats
        )
    return prepare_captions(
        settings, args.annotations, args.images, args.out, args.jobs, args.max_rejected, not args.skip_media
    )


def _web_images(args: argparse.Namespace) -> dict[str, float]:
    from xllm_speech.manifests.web_images import WebSettings, prepare_web_images

    settings = WebSettings(args.kind, args.naming, args.min_side_px, args.max_aspect, args.scores, args.min_score)
    return prepare_web_images(
        settings, args.annotations, args.images, args.out, args.jobs, args.max_rejected, args.max_missing,
        not args.skip_media,
    )


def _translate(args: argparse.Namespace) -> dict[str, float]:
    from xllm_speech.datasets import translation

    if args.batch_size < 1 or args.jobs < 1:
        raise ConfigError(f"--batch-size {args.batch_size} and --jobs {args.jobs} must be at least 1")
    translator: translation.Translator
    if args.table is not None:
        translator = translation.TableTranslator(args.table)
    elif args.mbart is not None:
        translator = translation.MbartTranslator(args.mbart, args.source, args.target, device=args.device)
    else:
        if not args.model:
            raise ConfigError("--endpoint needs --model, the model's name on that server")
        key = os.environ.get("OPENAI_API_KEY")
        translator = translation.EndpointTranslator(
            args.endpoint, args.model, key, args.jobs, source=args.source, target=args.target
        )
    path = args.cache or Path(f"{args.out}.cache.sqlite")
    cache = translation.TranslationCache(path, args.source, args.target, translator.name)
    try:
        return translation.translate_file(args.input, args.out, translator, cache, args.batch_size, args.max_rejected)
    finally:
        cache.close()


def _synthesise(args: argparse.Namespace) -> dict[str, float]:
    from xllm_speech.datasets import synthesis

    voice: synthesis.Voice
    if args.command is not None:
        voice = synthesis.CommandVoice(args.command, args.speakers or ())
    elif args.espnet is not None:
        voice = synthesis.EspnetVoice(args.espnet, args.speakers or ())
    else:
        voice = synthesis.EspeakVoice(args.speakers or synthesis.ESPEAK_SPEAKERS)
    texts = synthesis.read_spoken_texts(args.input, args.texts)
    return synthesis.synthesise(texts, voice, args.out, args.seed, args.jobs, args.max_rejected, args.licence)


def _instructions(args: argparse.Namespace) -> dict[str, float]:
    from xllm_speech.manifests.instructions import Source, prepare_instructions

    options = vars(args)
    sources = {}
    for kind in INSTRUCTION_KINDS:
        path, count = options[kind], options[f"{kind}_count"]
        if count < 0:
            raise ConfigError(f"--{kind}-count {count} must not be negative")
        if path is not None and count:
            sources[kind] = Source(path, count)
    return prepare_instructions(sources, args.out, args.seed)
