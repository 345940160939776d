"""Lists of words: what a line is, and what is refused."""

from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.extension.word_list import read_word_list


def listed(tmp_path: Path, content: bytes) -> list[str]:
    (tmp_path / "words.txt").write_bytes(content)
    return read_word_list(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"glioma\nsarcoma\n", ["glioma", "sarcoma"]),
        (b"\xef\xbb\xbfglioma\r\n\r\n \t\n  sarcoma  ", ["glioma", "sarcoma"]),
        ("\u00a0Gliom\u3000\nGliom".encode(), ["Gliom", "Gliom"]),
        ("می\u200cرود".encode(), ["می\u200cرود"]),
    ],
)
def test_a_word_is_a_line_without_the_spaces_around_it(tmp_path: Path, content: bytes, words: list[str]):
    assert listed(tmp_path, content) == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no word; expected one per line"),
        (b"\n \n\t\n\xc2\xa0\n", "has no word; expected one per line"),
        (b"glioma\nsar\x00coma\n", r":2: has the character U\+0000"),
        (b"glioma\t12\n", r":1: has the character U\+0009"),
        (b"a\nb\x0bc\n", r":2: has the character U\+000B"),
        (b"a\rb\n", r":1: has the character U\+000D"),
        (b"glioma\xff\n", "invalid UTF-8 at byte 6"),
        ("gli\ufffdma".encode(), r":1: has the character U\+FFFD"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=rf"words\.txt.*{message}"):
        listed(tmp_path, content)


def test_a_list_must_be_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(InputError, match="no such file; expected a text file with one word per line"):
            read_word_list(path)
