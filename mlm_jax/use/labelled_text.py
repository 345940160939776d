"""Labelled sentences as GLUE publishes them: tab-separated, a header line, no quoting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.errors import InputError

Text = str | tuple[str, str]

# GLUE's tasks name their columns so; the first pair that a header has is taken.
_SENTENCES = (
    ("sentence",),
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("text",),
)


@dataclass(frozen=True)
class LabelledTexts:
    """Sentences, or pairs of them, and the label of each as it stands in the file."""

    texts: Sequence[Text]
    labels: Sequence[str]


def read_labelled_texts(file: Path) -> LabelledTexts:
    """The rows of a TSV file whose header names `label` and `sentence`, or `sentence1` and `sentence2`, ….

    Raises:
        InputError: the file is missing or empty, has no such columns, or a line has another number of fields.
    """
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: broken UTF-8 at byte {error.start}") from error
    header = lines[0].rstrip("\r").split("\t")
    columns = next((names for names in reversed(_SENTENCES) if {*names, "label"} <= set(header)), None)
    if columns is None:
        raise InputError(
            f"{file}: its header has {', '.join(header)}: must have label and sentence (or sentence1, sentence2)"
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
        raise InputError(f"{file}: no line after its header: must have at least one")
    return LabelledTexts(texts, labels)
