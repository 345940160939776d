"""A full disk is one line and exit code 1, and leaves nothing behind."""

import os
from pathlib import Path

import pytest

from tests.run_small import documents, run_script, tokenizer, uninterrupted


@pytest.fixture
def nearly_full(small_disk: Path) -> Path:
    """A disk with 12 kB of free space."""
    free = os.statvfs(small_disk)
    (small_disk / "fill").write_bytes(bytes(free.f_bavail * free.f_bsize - 12_288))
    return small_disk


@pytest.mark.parametrize("to", ["mlm_jax", "hugging_face"])
def test_a_conversion_that_does_not_fit(nearly_full: Path, to: str) -> None:
    ended = run_script("convert_checkpoint", uninterrupted(), nearly_full / "out", "--to", to)
    assert ended.returncode == 1
    assert ended.stderr == f"error: {nearly_full}/out: No space left on device; nothing was written\n"
    assert [path.name for path in nearly_full.iterdir()] == ["fill"]


def test_data_and_a_tokenizer_that_do_not_fit(nearly_full: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(documents()))
    tokenizer().save(tmp_path / "tokenizer")
    for command in (
        ("train_tokenizer", "--vocab-size", 2000),
        ("prepare_data", "--tokenizer", tmp_path / "tokenizer"),
    ):
        ended = run_script(*command, "--input", tmp_path / "a.txt", "--output", nearly_full / "out")
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"error: {nearly_full}/out")
        assert "No space left on device" in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert not list(nearly_full.glob("**/*.partial"))
