"""What was left out of a run, and why: `rejected.jsonl` (data.md, Manifests).

A broken item never stops a run and never vanishes: it is written down with a reason, counted, and once more than a
configured share of the items is bad the run fails. A share says little about a handful of items: up to ten, and at most
half of all, always pass (unless the share is 0).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import write_jsonl

DEFAULT_MAX_SHARE = 0.01
ALWAYS_ALLOWED = 10


class Rejects:
    """Collects rejected items of one preparation; `write` puts them beside the manifest.

    Args:
        max_share: largest share of bad items (0..1) that `check` lets pass.
    """

    def __init__(self, max_share: float = DEFAULT_MAX_SHARE) -> None:
        self.max_share = max_share
        self.rows: list[dict[str, str]] = []

    def add(self, item_id: str, path: str | Path, reason: str, kind: str) -> None:
        """Note one item: its id, the file (with `:line` where it has one), the reason in words and its short `kind`."""
        self.rows.append({"id": item_id, "path": str(path), "reason": reason, "kind": kind})

    @property
    def counts(self) -> dict[str, int]:
        """Number of rejected items per kind, most frequent first."""
        return dict(Counter(row["kind"] for row in self.rows).most_common())

    def summary(self) -> str:
        """One line: how many were rejected and for what."""
        if not self.rows:
            return "nothing rejected"
        return f"{len(self.rows)} rejected ({', '.join(f'{kind} {n}' for kind, n in self.counts.items())})"

    def write(self, path: str | Path) -> None:
        """Write every row to `path` (an empty file when nothing was rejected, so that its absence means 'not run')."""
        write_jsonl(path, self.rows)

    def check(self, total: int, path: str | Path) -> None:
        """Raise `DataError` when too many of `total` items were rejected; `path` is where the list stands.

        Too many: more than max(max_share x total, min(10, total / 2)); with max_share 0, any.
        """
        allowed = max(self.max_share * total, min(ALWAYS_ALLOWED, total / 2)) if self.max_share > 0 else 0
        if total and len(self.rows) > allowed:
            raise DataError(
                f"{path}: {self.summary()} of {total} items, more than the allowed share {self.max_share:.3g}; "
                f"mend them or raise --max-rejected (first: {self.rows[0]['id']}: {self.rows[0]['reason']})"
            )
