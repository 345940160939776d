"""Runs the commands of `make demo`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlm_jax.config.files import load_config
from mlm_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent.parent


def demo_commands(folder: Path) -> list[list[str]]:
    """Returns the commands of the Makefile's `demo`, with this interpreter and another folder."""
    recipe = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    lines = [line for line in recipe.splitlines() if "$(BIN)/python" in line]
    command_lines = (
        line.strip().replace("$(BIN)/python", sys.executable).replace("$(DEMO)", str(folder))
        for line in lines
    )
    words = (re.findall(r'"[^"]*"|\S+', line) for line in command_lines)
    return [[word.strip('"') for word in line] for line in words]


@pytest.mark.slow
def test_the_demo_predicts_liberty(tmp_path: Path) -> None:
    *commands, fill_mask = demo_commands(tmp_path / "demo")
    commands[-1] += ["--data.path", f"{tmp_path}/demo-data", "--data.eval-path", f"{tmp_path}/demo-data"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for command in commands:
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    filled = subprocess.run(
        [*fill_mask, "--json"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    candidates = json.loads(filled.stdout)
    assert len(candidates) == 5
    assert candidates[0]["sequence"] == "The Statue of liberty is in New York."
    assert candidates[0]["score"] > 0.5


def test_the_demo_can_be_converted() -> None:
    """Conversions require a model with as many entries as its tokenizer; the text has fewer than are asked for."""
    text = (ROOT / "mlm_jax/demo/landmarks.txt").read_text().splitlines()
    vocabulary_size = load_config(ROOT / "configs/demo.py").model.vocabulary_size
    assert vocabulary_size == Tokenizer.train(text, 2200).vocabulary_size
