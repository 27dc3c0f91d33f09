"""The entry of `xllm-speech VERB ...`: one table of verbs, and what a user sees when something is wrong.

Only the verb that is asked for is imported, and the verbs import torch and the like when they run, so that every
`--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from xllm_speech.base.errors import UserError
from xllm_speech.version import __version__


class Verb(Protocol):
    """What a module of this room offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit status."""


# The verbs in the order in which a recipe calls them: name -> one line of help.
VERBS: dict[str, str] = {
    "prepare": "make manifests of a corpus, or bring a Kaldi data directory in or out",
    "features": "compute features and CMVN statistics ahead of training",
    "tokens": "make a token table from transcripts",
    "train": "train a model, or take up a training that was interrupted",
    "average": "average the last or the best checkpoints of a training",
    "ngram": "estimate an n-gram language model over a model's tokens",
    "units": "store CIF units of a manifest once, for phase 2 of the speech interface",
    "espnet": "models to and from ESPnet2's experiments",
    "transcribe": "turn speech into text",
    "stream": "turn speech into text while it is spoken",
    "answer": "answer the conversations of a manifest with an X-LLM",
    "chat": "talk with an X-LLM about images, clips and speech",
    "serve": "answer over HTTP: an OpenAI-compatible API, and a web demo",
    "export": "write an X-LLM as one folder that loads anywhere, with its card",
    "conditions": "does the image help: one test set with right, wrong and no images, and captions",
    "score": "compare recognised text with its reference: CER and more",
    "judge": "ask a judge which of two systems answers better, and sum up its verdicts",
    "bench": "measure speed and memory beside reference implementations",
    "report": "turn an experiment folder into one HTML page: tables, curves, alignments, samples, cost",
    "phases": "show the models of an experiment folder by phase, their cost and what stands on what",
    "check": "check a model: padding and batching must not change a result",
    "convert": "bring checkpoints of others to our names, with an account of every tensor",
    "doctor": "show what is installed, what is missing for what, and how to mend it",
}


def load_verb(name: str) -> Verb:
    """The module of a verb; `UserError` names the nearest verb where there is none of that name."""
    match name:
        case "prepare":
            from xllm_speech.bin import prepare

            return prepare
        case "features":
            from xllm_speech.bin import features

            return features
        case "tokens":
            from xllm_speech.bin import tokens

            return tokens
        case "train":
            from xllm_speech.bin import train

            return train
        case "average":
            from xllm_speech.bin import average

            return average
        case "ngram":
            from xllm_speech.bin import ngram

            return ngram
        case "units":
            from xllm_speech.bin import units

            return units
        case "espnet":
            from xllm_speech.bin import espnet

            return espnet
        case "transcribe":
            from xllm_speech.bin import transcribe

            return transcribe
        case "stream":
            from xllm_speech.bin import stream

            return stream
        case "answer":
            from xllm_speech.bin import answer

            return answer
        case "chat":
            from xllm_speech.bin import chat

            return chat
        case "serve":
            from xllm_speech.bin import serve

            return serve
        case "export":
            from xllm_speech.bin import export

            return export
        case "conditions":
            from xllm_speech.bin import conditions

            return conditions
        case "score":
            from xllm_speech.bin import score

            return score
        case "judge":
            from xllm_speech.bin import judge

            return judge
        case "bench":
            from xllm_speech.bin import bench

            return bench
        case "report":
            from xllm_speech.bin import report

            return report
        case "phases":
            from xllm_speech.bin import phases

            return phases
        case "check":
            from xllm_speech.bin import check

            return check
        case "convert":
            from xllm_speech.bin import convert

            return convert
        case "doctor":
            from xllm_speech.bin import doctor

            return doctor
    near = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"verbs: {', '.join(VERBS)}"
    raise UserError(f"unknown verb `{name}`; {hint}")


def overview() -> str:
    """The text of `xllm-speech --help`."""
    rows = "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
    return (
        "usage: xllm-speech VERB ...\n\n"
        f"Multimodal speech recognition with CIF and large language models, version {__version__}.\n\n"
        f"verbs:\n{rows}\n\n"
        "`xllm-speech VERB --help` tells a verb's options; `xllm-speech --version` prints the version."
    )


def show_log(prog: str) -> None:
    """The package's log goes to stderr, each line with the verb in front; of several processes only the first speaks freely."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prog}: %(message)s"))
    log = logging.getLogger("xllm_speech")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 good, 1 a user's mistake, 2 a wrong command line, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    prog = "xllm-speech"
    try:
        if not words:
            print(overview(), file=sys.stderr)
            return 2
        if words[0] in ("-h", "--help"):
            print(overview(), flush=True)
            return 0
        if words[0] == "--version":
            print(f"xllm-speech {__version__}", flush=True)
            return 0
        try:
            verb = load_verb(words[0])
        except UserError as error:
            print(f"{prog}: {error}", file=sys.stderr)
            return 2
        prog = f"xllm-speech {words[0]}"
        parser = argparse.ArgumentParser(prog=prog, description=VERBS[words[0]][0].upper() + VERBS[words[0]][1:] + ".")
        verb.add_arguments(parser)
        args = parser.parse_args(words[1:])
        show_log(prog)
        status = verb.run(args)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong here, and Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "xllm_speech":
            raise
        print(
            f"{prog}: the Python package `{error.name.split('.')[0]}` is not installed here; "
            "`xllm-speech doctor` tells what is missing and how to mend it",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
