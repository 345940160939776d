"""Vocabularies as text files, one entry per line, and what their entries say about the rules of their tokenizer."""

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.errors import InputError
from mlm_jax.files.git_lfs import check_no_pointer_file
from mlm_jax.vocabulary.wordpiece import CONTINUATION_PREFIX, LARGEST_VOCABULARY

# How other tokenizers mark where words begin or end in their vocabularies.
_FOREIGN_MARKS = {"▁": "SentencePiece", "Ġ": "byte-level BPE"}

# Four million entries of 60 bytes.
_LARGEST_BYTES = 1 << 28

# Characters that the library removes at the end of a line; str.rstrip would also remove some controls.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))

_SETTLE = 'write {"do_lower_case": …, "strip_accents": …} into tokenizer_config.json beside it'


@dataclass(frozen=True)
class BertRules:
    """Settings of BERT's normalizer; a value of None is not known."""

    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = None


def effective(rules: BertRules) -> dict[str, bool | None]:
    """Returns the settings, with the value of `strip_accents` that follows from `do_lower_case` if it is not known."""
    strip = rules.do_lower_case if rules.strip_accents is None else rules.strip_accents
    return {**rules.__dict__, "strip_accents": strip}


def guess_rules(entries: Mapping[str, int]) -> BertRules:
    """Returns the rules that fit a vocabulary: an entry that they can never produce speaks against them."""
    words = [entry.removeprefix(CONTINUATION_PREFIX) for entry in entries]
    # Only words count: uncased vocabularies also have entries such as [MASK] and <S>.
    cased = any(word.isalpha() and word != word.lower() for word in words)
    return BertRules(do_lower_case=not cased, strip_accents=not cased and not any(map(_has_mark, words)))


def _has_mark(word: str) -> bool:
    return not word.isascii() and any(
        unicodedata.category(character) == "Mn" for character in unicodedata.normalize("NFD", word)
    )


def warn_of_guess(file: Path, entries: Mapping[str, int], rules: BertRules) -> None:
    """Warns that `rules` were guessed, unless they are BERT's default and the entries are proof of lowercased text."""
    has_letters = any(entry.isalpha() and entry.lower() != entry.upper() for entry in entries)
    if rules.do_lower_case and rules.strip_accents and has_letters:
        return
    does = "lowercases" if rules.do_lower_case else "keeps case"
    accents = "strips accents" if rules.strip_accents else "keeps accents"
    warnings.warn(
        f"{file}: no tokenizer_config.json states its casing; judging by its entries, it {does} and {accents}; "
        f"{_SETTLE} to state it",
        stacklevel=2,
    )


def warn_of_contradiction(
    file: Path, entries: Mapping[str, int], rules: BertRules, default_of: str | None
) -> None:
    """Warns if `rules` can never produce some of the entries, or most of them if the rules were stated.

    default_of: class whose defaults the rules are; None if a file or the caller stated them.
    """
    words = [entry for entry in entries if entry.isalpha()]
    cased = sum(word != word.lower() for word in words)
    guess = effective(guess_rules(entries))
    lost = any(effective(rules)[name] and not guess[name] for name in ("do_lower_case", "strip_accents"))
    if default_of and lost:
        warnings.warn(
            f"{file}: is read lowercased and without accents, as {default_of} of transformers does by default, but "
            f"its entries are cased or accented; {_SETTLE} if this is wrong",
            stacklevel=2,
        )
    elif rules.do_lower_case and 2 * cased > len(words):
        warnings.warn(
            f"{file}: do_lower_case is true, but most of its words have capitals, which are then never found; "
            f"{_SETTLE} if this is wrong",
            stacklevel=2,
        )


def check_marks(file: Path, entries: Mapping[str, int], class_name: str | None) -> None:
    """Raises InputError if the entries are those of another kind of tokenizer."""
    continued = sum(entry.startswith(CONTINUATION_PREFIX) for entry in entries)
    for mark, kind in _FOREIGN_MARKS.items():
        if sum(entry.startswith(mark) and len(entry) > 1 for entry in entries) > continued:
            raise InputError(
                f"{file}: its entries are those of {kind} ({mark!r} marks words), but it would be read as "
                f"{class_name or 'BertTokenizer'}; expected WordPiece ({CONTINUATION_PREFIX!r} marks continuations)"
            )


def read_vocabulary(path: Path) -> dict[str, int]:
    """Returns the entries of a `vocab.txt` and their ids, as the `tokenizers` library reads it.

    Spaces after an entry and a byte order mark are no part of it. Of repeated entries the last one counts, with a
    warning.

    Raises:
        InputError: the file is empty, larger than 256 MB or than four million lines, or not UTF-8.
        OSError: the file cannot be read.
    """
    check_no_pointer_file(path)
    size = path.stat().st_size
    if size > _LARGEST_BYTES:
        raise InputError(
            f"{path}: {size / 1e6:.0f} MB: must be at most {_LARGEST_BYTES / 1e6:.0f} MB, one vocabulary entry per line"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: invalid UTF-8 at byte {error.start}; expected one entry per line"
        ) from error
    if text.count("\n") > LARGEST_VOCABULARY:
        raise InputError(
            f"{path}: has more than {LARGEST_VOCABULARY:,} lines: must be at most that many entries"
        )
    # Only "\n" ends a line: published vocabularies hold entries such as U+2028, where str.splitlines would split.
    entries = [line.rstrip(_SPACES) or line.removesuffix("\r") for line in text.split("\n")]
    while entries and not entries[-1]:
        entries.pop()
    if not entries:
        raise InputError(f"{path}: file is empty; expected one vocabulary entry per line")
    token_ids = {entry: number for number, entry in enumerate(entries)}
    _warn_of_repeats(path, entries, token_ids)
    return token_ids


def _warn_of_repeats(path: Path, entries: Sequence[str], token_ids: Mapping[str, int]) -> None:
    repeated = [
        (number, entry)
        for number, entry in enumerate(entries)
        if entry.strip() and token_ids[entry] != number
    ]
    if repeated:
        number, entry = repeated[0]
        more = f", and {len(repeated) - 1} more repeat" if len(repeated) > 1 else ""
        warnings.warn(
            f"{path}:{token_ids[entry] + 1}: repeats the entry {entry!r} of line {number + 1}{more}; the last one "
            "counts, as in transformers",
            stacklevel=2,
        )
