"""Long operations show a bar on a terminal and write nothing elsewhere."""

import io
import sys

import pytest

from mlm_jax.config import DataConfig
from mlm_jax.data.packing import DocumentRows
from mlm_jax.data.verification import verify_shards
from mlm_jax.preparation.division import Part
from mlm_jax.preparation.merge import merge_parts
from mlm_jax.preparation.prepare import prepare
from mlm_jax.shards.token_store import TokenStore, open_shards
from mlm_jax.text.tokenizer import Tokenizer

TEXTS = ["the tower stands in a city", "a city of rivers"] * 20


class Terminal(io.StringIO):
    """Stands in for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 60)


@pytest.fixture
def steps(tokenizer, tmp_path):
    """Operations that may take long, by the description of their bar."""
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    folder = tmp_path / "data"
    return {
        "prepare": lambda: prepare([str(tmp_path / "a.txt")], tokenizer, folder, part=Part(0, 1)),
        "merge": lambda: merge_parts(folder),
        "verify": lambda: verify_shards(folder),
        "count rows": lambda: DocumentRows(open_shards(folder), DataConfig().sequence_length),
        "tokenize": lambda: TokenStore.from_documents(TEXTS, tokenizer),
        "read": lambda: Tokenizer.train(TEXTS, 60),
    }


def test_long_operations_show_a_bar(steps, monkeypatch):
    monkeypatch.setattr("mlm_jax.corpus.progress._DELAY_SECONDS", 0.0)
    for name, step in steps.items():
        monkeypatch.setattr(sys, "stderr", Terminal())
        step()
        assert f"{name}: " in sys.stderr.getvalue()


@pytest.mark.parametrize(("stderr", "delay"), [(Terminal, 2.0), (io.StringIO, 0.0)])
def test_quick_operations_and_other_outputs_show_nothing(steps, monkeypatch, stderr, delay):
    monkeypatch.setattr("mlm_jax.corpus.progress._DELAY_SECONDS", delay)
    monkeypatch.setattr(sys, "stderr", stderr())
    for step in steps.values():
        step()
    assert sys.stderr.getvalue() == ""
