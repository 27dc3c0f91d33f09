"""`xllm-speech serve`: answer over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Serve an X-LLM to clients of OpenAI's API (chat completions with images, clips and speech; transcriptions), and with "
        "--demo as a web page. It listens to this machine alone unless --host says otherwise, which needs an API key. "
        "docs/serving.md tells more."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="an X-LLM: a model directory, or a training")
    parser.add_argument("--demo", action="store_true", help="with a web page, at /demo")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="(default: 8000; 0 for any that is free)")
    parser.add_argument("--name", help="of the model to clients (default: xllm)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="what clients must show; better in the environment, as XLLM_API_KEY, where others do "
        "not see it",
    )
    parser.add_argument(
        "--allow-host", action="append", metavar="HOST", help="media may be fetched from there (default: from nowhere); repeats"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of serve/config.py as YAML")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as limits.audio_sec=30")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    import os
    from dataclasses import replace

    from xllm_speech.base.config import load_config
    from xllm_speech.infer.xllm import XLLM
    from xllm_speech.nn.device import choose_device, limit_threads
    from xllm_speech.serve.config import ServeConfig
    from xllm_speech.serve.server import serve

    config = load_config(args.config, ServeConfig, args.overrides)
    given = {
        "host": args.host, "port": args.port, "name": args.name, "allow_hosts": args.allow_host, "demo": args.demo or None,
        "api_key": args.api_key or os.environ.get("XLLM_API_KEY") or None,
    }
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    config.require_key()
    limit_threads(args.threads)
    model = XLLM.from_pretrained(args.model, choose_device(args.device))
    maker = None
    if config.backend:
        from xllm_speech.serve.remote import RemoteMaker

        maker = RemoteMaker(model.checkpoint.model.llm, config.backend, config.backend_model, config.backend_key)
    serve(model, config, maker, threads=args.threads, on_listening=lambda url: print(f"listening on {url}", flush=True))
    return 0
