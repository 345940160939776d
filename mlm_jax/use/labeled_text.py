"""Reads labeled texts in the format of GLUE: tab-separated, with a header line and without quoting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.errors import InputError

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


@dataclass(frozen=True)
class LabeledTexts:
    """Texts or pairs of texts, and their labels as written in the file."""

    texts: Sequence[Text]
    labels: Sequence[str]


def read_labeled_texts(file: Path) -> LabeledTexts:
    """Reads a TSV file whose header names `label` and `sentence`, or `sentence1` and `sentence2`, ….

    Raises:
        InputError: the file is missing or empty, lacks these columns, or a line has the wrong number of fields.
    """
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: invalid UTF-8 at byte {error.start}") from error
    header = lines[0].rstrip("\r").split("\t")
    columns = next((names for names in reversed(_SENTENCES) if {*names, "label"} <= set(header)), None)
    if columns is None:
        raise InputError(
            f"{file}: header {', '.join(header)}: must have label and sentence (or sentence1, sentence2)"
        )
    texts: list[Text] = []
    labels: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header):
            raise InputError(f"{file}:{number}: {len(fields)} fields: must be {len(header)} as in the header")
        row = dict(zip(header, fields, strict=True))
        texts.append(row[columns[0]] if len(columns) == 1 else (row[columns[0]], row[columns[1]]))
        labels.append(row["label"].strip())
    if not texts:
        raise InputError(f"{file}: no line after the header: must have at least one")
    return LabeledTexts(texts, labels)
