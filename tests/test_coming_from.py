"""The page "Coming from …": our side of every line exists. `tests/peers/test_coming_from.py` checks the other side."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import mlm_jax
from mlm_jax.commands.flags import flags_of
from mlm_jax.config import TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "coming_from.md"


def tables() -> dict[str, dict[str, str]]:
    """Maps the heading of each table to its rows: another library's argument to ours."""
    found: dict[str, dict[str, str]] = {}
    for section in PAGE.read_text().split("\n### ")[1:]:
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*\|$|^\| `(\w+)` \| (.*?) \| \|$", section, re.MULTILINE)
        found[section.partition("\n")[0]] = {(a or c): (b or d) for a, b, c, d in rows}
    return found


def exists(ours: str) -> bool:
    """Returns True if a class has the field or parameter, or a command the flag, that is written in the page."""
    if call := re.fullmatch(r"(\w+)\.(\w+)\((\w+)\)", ours):
        return call[3] in inspect.signature(getattr(getattr(mlm_jax, call[1]), call[2])).parameters
    if field := re.fullmatch(r"(\w+)\.(\w+)", ours):
        return field[2] in {each.name for each in dataclasses.fields(getattr(mlm_jax, field[1]))}
    command, flag = ours.split()
    if command == "train":
        return flag == "CONFIG" or flag in {each.name for each in flags_of(TrainConfig, TrainConfig())}
    return flag in {
        each.name for each in flags_of(importlib.import_module(f"mlm_jax.commands.{command}").Arguments)
    }


@pytest.mark.parametrize("heading", tables())
def test_our_side_of_every_line_exists(heading: str) -> None:
    rows = tables()[heading]
    assert len(rows) == PAGE.read_text().split(f"\n### {heading}\n")[1].split("\n#")[0].count("\n| `")
    for argument, ours in rows.items():
        names = re.findall(r"`([^`]+)`", ours)
        assert names or ours == "—", argument
        for name in names:
            assert exists(name), f"{argument}: {name}"


def test_what_has_no_counterpart_has_a_reason() -> None:
    """As the page promises."""
    missing = [line for line in PAGE.read_text().splitlines() if re.fullmatch(r"\| .* \| — \| *\|", line)]
    assert not missing


def test_what_does_not_exist_is_noticed() -> None:
    for name in ("MaskedLM.fit(epochs)", "MaskingConfig.rate", "train --lr", "prepare --inputs"):
        assert not exists(name)
