"""Configurations within configurations: lists and mappings of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import ConfigError


@dataclass
class Row:
    path: str = ""


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)
    named: dict[str, Row] = field(default_factory=dict)


def test_members_of_lists_and_mappings_are_as_strict():
    table = config_from_dict({"rows": [{"path": "a"}], "named": {"image": {"path": "b"}}}, Table)
    assert (table.rows[0].path, table.named["image"].path) == ("a", "b")
    with pytest.raises(ConfigError, match=r"unknown key `rows\[0\].pth`; did you mean `rows\[0\].path`"):
        config_from_dict({"rows": [{"pth": "a"}]}, Table)
    with pytest.raises(ConfigError, match=r"unknown key `named.image.pth`"):
        config_from_dict({"named": {"image": {"pth": "a"}}}, Table)
