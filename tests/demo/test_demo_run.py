"""The demo, run as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlm_jax.config.files import load_config
from mlm_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.release
def test_the_demo_predicts_liberty(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mlm_jax", "demo", "--output", str(tmp_path / "demo")]
    demo = subprocess.run(
        command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=1200
    )
    best, *others = demo.stdout.splitlines()[-5:]
    probability, sentence = re.fullmatch(r" *([\d.]+)% +liberty +(.*)", best).groups()
    assert float(probability) > 50
    assert sentence == "The Statue of liberty is in New York."
    assert len(others) == 4


def test_the_demo_can_be_converted() -> None:
    """Conversions require a model with as many entries as its tokenizer; the text has fewer than are asked for."""
    text = (ROOT / "mlm_jax/demo/landmarks.txt").read_text().splitlines()
    vocabulary_size = load_config(ROOT / "configs/demo.py").model.vocabulary_size
    assert vocabulary_size == Tokenizer.train(text, 2200).vocabulary_size
