"""Reads labeled texts in the format of GLUE: tab-separated, with a header line and without quoting."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlm_jax.corpus.document_formats import warn_if_quoted
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import ProblemType
from mlm_jax.use.labels import number_in

Text = str | tuple[str, str]

# Column names of GLUE's tasks. If a header has several of these, the last one is used.
_SENTENCES = (
    ("sentence",),
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("text",),
)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class LabeledTexts:
    """Texts or pairs of texts, and their labels."""

    file: Path
    texts: Sequence[Text]
    labels: Sequence[Any]
    """Strings as written in the file or, after `parsed_as`, lists of names or numbers."""
    lines: Sequence[int]
    """Line of each text, from 1."""

    def where(self, index: int) -> str:
        """Returns the place of a label, for messages."""
        return f"{self.file}:{self.lines[index]}: label"

    @property
    def first_fraction(self) -> str | None:
        """First label that is a number with a fraction, as written, or None."""
        numbers = ((label, _number(label)) for label in self.labels)
        return next(
            (label for label, number in numbers if number is not None and number != int(number)), None
        )

    @property
    def doubt(self) -> str | None:
        """Describes labels that are probably meant otherwise than as names of classes; None if there are none."""
        by_number: dict[float, str] = {}
        for label in dict.fromkeys(self.labels):
            if len(label) > 1 and label[0] == label[-1] == '"':
                return f"label {label!r} is read with its quotation marks: the file must have no quoting"
            value = _number(label)
            if value is None and _DECIMAL_COMMA.fullmatch(label):
                return f"label {label!r} is read as a name: must have a point to be a number"
            if value is not None and by_number.setdefault(value, label) != label:
                return f"labels {by_number[value]!r} and {label!r} are the same number, but two classes"
        return None

    def parsed_as(self, problem: ProblemType, num_outputs: int | None) -> "LabeledTexts":
        """Returns labels for a classifier of a problem type, which has `num_outputs` outputs if it exists already.

        For several labels a text, they are names separated by commas; no name is no label. For a regression or a single
        probability, they are numbers; if none is, those of a single probability are its name or nothing.

        Raises:
            InputError: a label is empty or not a number; the message has its line.
        """
        has_names = any(self.labels) and all(_number(label) is None for label in self.labels)
        if problem == "multi_label_classification" and (num_outputs != 1 or has_names):
            names = [[name.strip() for name in label.split(",")] for label in self.labels]
            return replace(self, labels=[[name for name in each if name] for each in names])
        parsed: list[Any] = []
        for index, label in enumerate(self.labels):
            value = label if problem == "single_label_classification" else _number(label)
            if value is None or value == "":
                wanted = "a name" if problem == "single_label_classification" else "a number"
                raise InputError(f"{self.where(index)} is {label!r}: must be {wanted}")
            parsed.append(value)
        return replace(self, labels=parsed)


def read_labeled_texts(file: Path) -> LabeledTexts:
    """Reads a TSV file whose header names `label` and `sentence`, or `sentence1` and `sentence2`, ….

    Raises:
        InputError: the file cannot be read or is empty, lacks these columns or has one twice, or a line has the wrong
            number of fields.
    """
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}: must be a tab-separated file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: invalid UTF-8 at byte {error.start}") from error
    header = lines[0].rstrip("\r").split("\t")
    columns = next((names for names in reversed(_SENTENCES) if {*names, "label"} <= set(header)), None)
    if columns is None:
        raise InputError(
            f"{file}: header {', '.join(header)}: must have label and sentence (or sentence1, sentence2)"
        )
    for name in (*columns, "label"):
        if header.count(name) > 1:
            raise InputError(f"{file}: header {', '.join(header)}: must have {name} once")
    texts: list[Text] = []
    labels: list[str] = []
    numbers: list[int] = []
    warned = False
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header):
            raise InputError(f"{file}:{number}: {len(fields)} fields: must be {len(header)} as in the header")
        row = dict(zip(header, fields, strict=True))
        if not warned:
            warned = any(warn_if_quoted(f"{file}:{number}", name, row[name]) for name in columns)
        texts.append(row[columns[0]] if len(columns) == 1 else (row[columns[0]], row[columns[1]]))
        labels.append(row["label"].strip())
        numbers.append(number)
    if not texts:
        raise InputError(f"{file}: no line after the header: must have at least one")
    return LabeledTexts(file, texts, labels, numbers)


def _number(label: str) -> float | None:
    """Returns a finite number, or None."""
    value = number_in(label)
    return value if value is not None and math.isfinite(value) else None
