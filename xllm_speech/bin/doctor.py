"""`xllm-speech doctor`: what is installed, what is missing for what, the devices, and the command that mends it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from xllm_speech.bin.installation import CORE, Finding, devices, examine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 where something of the core is missing, broken or of another version than asked for."""
    findings = examine()
    machine = devices()
    bad_core = [finding.name for finding in findings if finding.kind == CORE and finding.status != "ok"]
    if args.json:
        document = {
            "python": sys.version.split()[0],
            "parts": [dataclasses.asdict(finding) for finding in findings],
            "devices": machine,
            "core_ok": not bad_core,
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print_table(findings, machine, bad_core)
    return 1 if bad_core else 0


def _print_table(findings: list[Finding], machine: dict[str, Any], bad_core: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=120)
    colours = {"ok": "green", "missing": "yellow", "broken": "red", "version differs": "red"}
    table = Table(title=f"xllm-speech on Python {sys.version.split()[0]}", title_justify="left")
    for heading in ("", "name", "version or place", "needed for", "status"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        colour = "red" if finding.kind == CORE and finding.status == "missing" else colours[finding.status]
        table.add_row(
            finding.kind, finding.name, finding.version or "-", finding.needed_for, f"[{colour}]{finding.status}[/]"
        )
    console.print(table)
    cuda = ", ".join(f"{device['name']} ({device['memory_gib']} GiB)" for device in machine["cuda"]) or "none"
    console.print(
        f"Processor: {machine['cores']} cores, {machine['memory_gib']} GiB memory, {machine['free_disk_gib']} GiB disk free. "
        f"CUDA devices: {cuda}."
    )
    for finding in findings:
        if finding.status != "ok":
            detail = f" ({finding.detail})" if finding.detail else ""
            console.print(escape(f"{finding.name}: {finding.status}{detail}. To mend: {finding.mend}"), soft_wrap=True)
    if bad_core:
        console.print(f"[red]The core does not work: {', '.join(bad_core)}.[/]")
    else:
        console.print("[green]The core works.[/]")
