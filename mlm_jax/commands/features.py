"""`mlm-jax features`: write a model's features of texts to .npz or .parquet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlm_jax.commands.flags import parse, positional, required
from mlm_jax.corpus.document_formats import ErrorPolicy, Format, ReadOptions
from mlm_jax.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Write a model's features of any number of texts to .npz or .parquet, in constant memory."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    input: tuple[str, ...] = positional("TEXT_FILE")
    """.txt (one text per line), .jsonl, .csv, .tsv or .parquet files, folders, globs and URLs; - is standard input.

    Every line or row has its vector, even if it is empty or null."""
    output: Path = required("FILE")
    """FILE.npz or FILE.parquet."""
    layers: tuple[int, ...] = (-1,)
    """Layers of the features: 0 for the embeddings, 1 for the first layer, -1 for the last."""
    pooling: Literal["mean", "cls", "max", "none"] = "mean"
    """"mean" or "max" of all tokens, the first token ("cls"), or every token's features ("none")."""
    truncate: bool = False
    """Truncate texts that are too long, instead of stopping at the first one."""
    text_field: str = "text"
    """JSON field or column that holds the text."""
    format: Format | None = None
    """Format of all files, whatever their suffixes; required for standard input."""
    errors: ErrorPolicy = "strict"
    """Invalid UTF-8: "strict" stops, "replace" substitutes U+FFFD."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Extracts the features and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.corpus.documents import is_input, read_documents
    from mlm_jax.use.features_file import extract_features
    from mlm_jax.use.masked_lm import MaskedLM

    if is_input(parsed.output, parsed.input, ReadOptions(parsed.text_field, format=parsed.format)):
        raise InputError(f"{parsed.output}: is a file of the texts; choose another file")
    count = extract_features(
        MaskedLM.from_preset(parsed.model),
        read_documents(
            parsed.input,
            text_field=parsed.text_field,
            errors=parsed.errors,
            format=parsed.format,
            keep_empty=True,
        ),
        parsed.output,
        layers=parsed.layers[0] if len(parsed.layers) == 1 else parsed.layers,
        pooling=parsed.pooling,
        truncate=parsed.truncate,
        progress=True,
    )
    print(f"{parsed.output}: features of {count:,} texts")
