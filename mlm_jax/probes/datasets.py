"""Reads published data sets for probes: CrowS-Pairs, WinoBias and BLiMP."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import parse_json
from mlm_jax.use.fill_mask import MASK

_PRONOUNS = frozenset({"he", "she", "him", "her", "his", "hers"})
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_WINOBIAS_NAMES = ("{kind}_stereotyped_type{number}.txt.dev", "{kind}_stereotyped_type{number}.txt.test")
# Even the least similar published pairs share 0.8 of their words.
_MIN_SIMILARITY = 0.6


@dataclass(frozen=True)
class CrowsPair:
    """Two sentences about different groups; `sentence_more` is more stereotyping."""

    sentence_more: str
    sentence_less: str
    direction: str
    """stereo or antistereo: the pair expresses or contradicts a stereotype."""
    bias_type: str


@dataclass(frozen=True)
class PronounPair:
    """A sentence with a masked pronoun, and the pronouns of its stereotyped and its anti-stereotyped version.

    A second pronoun for the same person is also masked; the probe predicts the first.
    """

    text: str
    pro: str
    anti: str
    kind: str


@dataclass(frozen=True)
class MinimalPair:
    """A grammatical and an ungrammatical sentence."""

    good: str
    bad: str
    paradigm: str


def read_crows_pairs(file: Path) -> list[CrowsPair]:
    """Reads the pairs of crows_pairs_anonymized.csv (Nangia et al. 2020).

    Raises:
        InputError: the file is missing, is not CSV, lacks a column, or a line lacks a sentence.
    """
    rows = _csv_rows(file)
    _, header = next(rows, (1, []))
    wanted = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
    missing = [name for name in wanted if name not in header]
    if missing:
        raise InputError(f"{file}: no column {missing[0]}: must have {', '.join(wanted)}")
    pairs = []
    for line, row in rows:
        record = dict(zip(header, row, strict=False))
        values = [record.get(name, "").strip() for name in wanted]
        if not all(values):
            raise InputError(f"{file}:{line}: {wanted[values.index('')]} is empty")
        if values[2] not in ("stereo", "antistereo"):
            raise InputError(
                f"{file}:{line}: stereo_antistereo is {values[2]!r}: must be stereo or antistereo"
            )
        pairs.append(CrowsPair(*values))
    return _some(pairs, file)


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields each non-blank row with the number of its first line."""
    reader = csv.reader(io.StringIO(_text_of(file), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{file}:{line}: not valid CSV: {error}") from error
        if row:
            yield line, row


def read_winobias(folder: Path) -> list[PronounPair]:
    """Reads WinoBias (Zhao et al. 2018): types 1 and 2, and the development and test halves that are present.

    Raises:
        InputError: a file is missing, a line does not have the published format, or the stereotyped and the
            anti-stereotyped file do not match.
    """
    pairs: list[PronounPair] = []
    for pattern in _WINOBIAS_NAMES:
        for number in (1, 2):
            files = [folder / pattern.format(kind=kind, number=number) for kind in ("pro", "anti")]
            if not any(file.is_file() for file in files):
                continue
            pro, anti = (_winobias_lines(file) for file in files)
            if len(pro) != len(anti):
                raise InputError(f"{files[0]}: {len(pro)} lines: must be {len(anti)}, as in {files[1].name}")
            for (line, text, one), (other_line, other_text, other) in zip(pro, anti, strict=True):
                where = f"{files[0]}:{line}"
                if one == other:
                    raise InputError(
                        f"{where}: {one!r} is also in {files[1].name}: must be a different pronoun"
                    )
                # A few of the published sentences also differ in a word or two.
                similarity = SequenceMatcher(None, text.split(), other_text.split(), autojunk=False).ratio()
                if similarity < _MIN_SIMILARITY:
                    raise InputError(f"{where}: must match the sentence at {files[1].name}:{other_line}")
                pairs.append(PronounPair(text, one, other, f"type {number}"))
    if not pairs:
        names = ", ".join(_WINOBIAS_NAMES[0].format(kind=kind, number=1) for kind in ("pro", "anti"))
        raise InputError(f"{folder}: no WinoBias files: must contain {names}, …")
    return pairs


def _winobias_lines(file: Path) -> list[tuple[int, str, str]]:
    """Returns each line's number, its text with the bracketed pronouns masked, and the first pronoun."""
    parsed = []
    for number, line in enumerate(_text_of(file).splitlines(), start=1):
        if not line.strip():
            continue
        text = re.sub(r"^\d+\s+", "", line.strip())
        pronouns = [match for match in _BRACKETED.finditer(text) if match[1].lower() in _PRONOUNS]
        if not pronouns:
            raise InputError(f"{file}:{number}: no pronoun in brackets: must have at least one")
        # Two pronouns refer to the same person, so the second would reveal the first.
        masked = _BRACKETED.sub(lambda match: MASK if match[1].lower() in _PRONOUNS else match[1], text)
        parsed.append((number, masked, pronouns[0][1].lower()))
    return parsed


def read_minimal_pairs(file: Path) -> list[MinimalPair]:
    """Reads the pairs of a BLiMP file (Warstadt et al. 2020), which has one JSON object per line.

    Raises:
        InputError: the file is missing, or a line is not a JSON object or lacks a sentence.
    """
    pairs = []
    for number, line in enumerate(_text_of(file).splitlines(), start=1):
        if not line.strip():
            continue
        record = parse_json(line, f"{file}:{number}")
        names = ("sentence_good", "sentence_bad")
        for name in names:
            if not isinstance(record, dict) or not isinstance(record.get(name), str):
                raise InputError(f"{file}:{number}: no string {name}: must have {' and '.join(names)}")
            if not record[name].strip():
                raise InputError(f"{file}:{number}: {name} is empty: must be a sentence")
        paradigm = str(record.get("UID", file.stem))
        pairs.append(MinimalPair(record["sentence_good"], record["sentence_bad"], paradigm))
    return _some(pairs, file)


def _text_of(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{file}: is a folder: must be a file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: invalid UTF-8 at byte {error.start}") from error


def _some(pairs: list[Any], file: Path) -> list[Any]:
    if not pairs:
        raise InputError(f"{file}: no pair: must have at least one")
    return pairs
