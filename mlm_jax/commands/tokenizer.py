"""`mlm-jax tokenizer`: train a WordPiece vocabulary on text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.commands.flags import parse, required
from mlm_jax.text.corpus import DocumentBoundary, ErrorPolicy


@dataclass(frozen=True)
class Arguments:
    """Train a WordPiece vocabulary on text, and write tokenizer.json and vocab.txt."""

    input: tuple[str, ...] = required("FILE")
    """.txt, .jsonl or .parquet files, the first two also .gz, .zst, .xz or .bz2; globs and fsspec URLs."""
    output: str = required("DIR")
    """Folder for tokenizer.json and vocab.txt."""
    vocab_size: int = 8192
    """Number of entries, including the five special ones."""
    text_field: str = "text"
    """JSON field or Parquet column that holds the text."""
    document_boundary: DocumentBoundary = "line"
    """Documents in .txt files: one per "line", or separated by a "blank_line"."""
    lowercase: bool = True
    """Lowercase and strip accents, as in BERT's uncased vocabularies; --no-lowercase keeps both."""
    errors: ErrorPolicy = "strict"
    """Invalid UTF-8: "strict" stops, "replace" substitutes U+FFFD and counts the documents."""
    sample_characters: int = 50_000_000
    """Number of characters to train on, sampled evenly over the input; each takes about 10 bytes of memory."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Trains the vocabulary, saves it and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    from mlm_jax.files.folder_lock import own_folder
    from mlm_jax.text.corpus import read_documents
    from mlm_jax.text.tokenizer import Tokenizer

    documents = read_documents(
        parsed.input,
        text_field=parsed.text_field,
        errors=parsed.errors,
        document_boundary=parsed.document_boundary,
    )
    with own_folder(Path(parsed.output)):
        tokenizer = Tokenizer.train(
            documents,
            parsed.vocab_size,
            lowercase=parsed.lowercase,
            sample_characters=parsed.sample_characters,
        )
        tokenizer.save(parsed.output)
    print(f"{parsed.output}: {tokenizer.vocabulary_size:,} entries, fingerprint {tokenizer.fingerprint[:12]}")
