"""Reads a list of words: a text file with one word per line."""

import unicodedata
from pathlib import Path

from mlm_jax.errors import InputError


def read_word_list(file: Path) -> list[str]:
    """Returns the words of a UTF-8 text file in their order, without blank lines and the spaces around a word.

    Raises:
        InputError: there is no such file, it is not UTF-8, has no word, or has a line with a control character.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected a text file with one word per line")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: invalid UTF-8 at byte {error.start}; expected one word per line"
        ) from error
    words = []
    # Only "\n" and "\r\n" end a line: splitlines() would also divide at control characters, and hide them.
    for number, line in enumerate(text.split("\n"), start=1):
        word = line.removesuffix("\r").strip(" \t\u00a0\u3000")
        odd = next((character for character in word if _is_odd(character)), None)
        if odd is not None:
            raise InputError(
                f"{file}:{number}: has the character U+{ord(odd):04X}, which no word has; expected one word per line"
            )
        if word and not word.isspace():
            words.append(word)
    if not words:
        raise InputError(f"{file}: has no word; expected one per line")
    return words


def _is_odd(character: str) -> bool:
    return unicodedata.category(character) == "Cc" or character == "\ufffd"
