"""Train a WordPiece vocabulary on text: writes tokenizer.json and vocab.txt."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mlm_jax.commands import cli
from mlm_jax.text.corpus import DocumentBoundary, ErrorPolicy, read_documents
from mlm_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Arguments:
    """Train a WordPiece vocabulary on text: writes tokenizer.json and vocab.txt."""

    input: tuple[str, ...]
    """.txt, .jsonl or .parquet files, the first two also .gz, .zst, .xz or .bz2; globs and fsspec URLs."""
    output: str
    """Folder for tokenizer.json and vocab.txt."""
    vocabulary_size: Annotated[int, tyro.conf.arg(name="vocab-size")] = 8192
    """Entries wanted, the five special ones included."""
    text_field: str = "text"
    """JSON field or Parquet column that holds the text."""
    document_boundary: DocumentBoundary = "line"
    """In .txt files: a document a line, or documents separated by blank lines."""
    lowercase: bool = True
    """Lowercase and strip accents, as in BERT's uncased vocabularies."""
    errors: ErrorPolicy = "strict"
    """At broken UTF-8: stop, or put U+FFFD in its place and count."""
    sample_characters: int = 50_000_000
    """Characters to learn from, evenly spread over the input; about 10 bytes of memory each."""


def main() -> None:
    """Read the arguments, train, save, say what came out."""
    arguments = cli.parse(Arguments)
    documents = read_documents(
        arguments.input,
        text_field=arguments.text_field,
        errors=arguments.errors,
        document_boundary=arguments.document_boundary,
    )
    tokenizer = Tokenizer.train(
        documents,
        arguments.vocabulary_size,
        lowercase=arguments.lowercase,
        sample_characters=arguments.sample_characters,
    )
    tokenizer.save(arguments.output)
    print(
        f"{arguments.output}: {tokenizer.vocabulary_size:,} entries, fingerprint {tokenizer.fingerprint[:12]}"
    )


if __name__ == "__main__":
    cli.run(main)
