"""Shipped configs and sweeps: each loads, and its docstring names commands that parse."""

import re
import shlex
from pathlib import Path

import pytest

from mlm_jax.__main__ import COMMANDS
from mlm_jax.commands.config_flags import parse_config
from mlm_jax.config.files import call_in_file, load_config, shipped_configs
from mlm_jax.sweep.plan import load_sweep

SHIPPED = shipped_configs()


def commands_in(path: Path) -> list[list[str]]:
    """Words of the `mlm-jax` commands in a file's docstring."""
    docstring = path.read_text().split('"""')[1].replace("\\\n", "")
    return [shlex.split(line, comments=True) for line in re.findall(r"^ +(mlm-jax .*)$", docstring, re.M)]


@pytest.mark.parametrize("name", SHIPPED)
def test_docstrings_have_commands_that_can_be_pasted(name: str) -> None:
    commands = commands_in(SHIPPED[name])
    assert commands
    for _, command, *arguments in commands:
        assert command in COMMANDS
        if command == "train":
            assert parse_config(arguments, "PROG").num_steps == load_config(name).num_steps
        if command == "ablate":
            assert arguments[0] == name
            assert len(load_sweep(arguments[0]).trials) > 1
            assert "tiny_wiki.py` has the commands that prepare the data" in SHIPPED[name].read_text()


def test_every_sweep_reads_the_data_that_its_parent_prepares() -> None:
    parent = SHIPPED["ablations/tiny_wiki"]
    text = parent.read_text()
    config, _ = call_in_file(parent, "config", "TrainConfig")
    assert "--output runs/ablations-$part" in text
    assert (config.data.path, config.data.eval_path) == ("runs/ablations-train", "runs/ablations-valid")
    for name in SHIPPED:
        if name.startswith("ablations/") and SHIPPED[name] != parent:
            for trial in load_sweep(name).trials.values():
                assert (trial.data.path, trial.data.eval_path) == (config.data.path, config.data.eval_path)
