"""`xllm-speech export`: an X-LLM as one folder that loads anywhere, with its card; interfaces trained apart joined into one."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Write an X-LLM as one folder with whole interfaces, the language model and the frozen encoders, and a model card; it "
        "works wherever it is moved, offline. With --interface, interfaces that were trained apart become one model."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, metavar="DIR", help="an X-LLM: a model directory, or a training")
    source.add_argument("--interface", action="append", metavar="KIND=DIR", help="an interface to join; repeat for every kind")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--without-frozen", action="store_true", help="name the frozen parts by path, do not copy them")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="metrics.json of a recipe, for the card")
    parser.add_argument("--data", default="", metavar="TEXT", help="what it was trained on, for the card")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the Hugging Face hub (with your login)")


def run(args: argparse.Namespace) -> int:
    """Export; exit status 0."""
    from xllm_speech.base.errors import ConfigError, UserError, first_line
    from xllm_speech.base.files import read_json
    from xllm_speech.infer.export import export_xllm
    from xllm_speech.infer.merge import merge_interfaces
    from xllm_speech.infer.model_card import write_card
    from xllm_speech.models.xllm_checkpoints import load_xllm

    scores = None if args.scores is None else read_json(args.scores)
    if args.model is not None:
        checkpoint = load_xllm(args.model)
    else:
        pairs = [pair.partition("=") for pair in args.interface]
        if not all(kind and folder for kind, _, folder in pairs):
            raise ConfigError(f"--interface {' '.join(args.interface)}: expected KIND=DIR, such as image=exp/xllm/image")
        checkpoint = merge_interfaces({kind: folder for kind, _, folder in pairs})
    card = write_card(checkpoint, args.out.name, scores, args.data)
    export_xllm(checkpoint, args.out, not args.without_frozen, card)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {', '.join(checkpoint.description.model.interfaces.kinds)}; {size / 1e6:.1f} MB")
    if args.push:
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            api.create_repo(args.push, exist_ok=True)
            api.upload_folder(repo_id=args.push, folder_path=str(args.out))
        except Exception as error:  # the hub's client has errors of many libraries
            raise UserError(f"{args.push}: not uploaded ({first_line(error)}); the folder {args.out} is complete") from error
        print(f"uploaded to {args.push}")
    return 0
