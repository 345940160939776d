"""Tokenise text into the shards that training reads."""

from dataclasses import dataclass

from mlm_jax.commands import cli
from mlm_jax.data.division import Part
from mlm_jax.data.prepare import prepare
from mlm_jax.data.shards import DEFAULT_SHARD_TOKENS
from mlm_jax.errors import InputError
from mlm_jax.text.corpus import DocumentBoundary, ErrorPolicy
from mlm_jax.text.encode import Separator
from mlm_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Arguments:
    """Tokenise text into the shards that training reads. A killed run continues when started again."""

    input: tuple[str, ...]
    """.txt, .jsonl or .parquet files, the first two also .gz, .zst, .xz or .bz2; globs and fsspec URLs."""
    tokenizer: str
    """vocab.txt, tokenizer.json, or a folder that holds one."""
    output: str
    """Folder for the shards and their manifest."""
    text_field: str = "text"
    """JSON field or Parquet column that holds the text."""
    document_boundary: DocumentBoundary = "line"
    """In .txt files: a document a line, or documents separated by blank lines."""
    errors: ErrorPolicy = "strict"
    """At broken UTF-8: stop, or put U+FFFD in its place and count."""
    separator: Separator = "sep"
    """What ends each document: the token [SEP], or nothing."""
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    """A shard ends with the document that brings it to this many tokens; a killed run repeats at most one
    shard."""
    workers: int | None = None
    """Threads; by default one a core, at most four. The output does not depend on it."""
    part: int | None = None
    """Prepare only this part, from 0, of --num-parts: for job arrays. Each part is a job of its own, on any
    machine and in any order, with the same arguments otherwise; then scripts/merge_data.py OUTPUT."""
    num_parts: int | None = None
    """How many parts there are."""


def main() -> None:
    """Read the arguments, prepare, say what came out."""
    arguments = cli.parse(Arguments)
    if (arguments.part is None) != (arguments.num_parts is None):
        raise InputError("--part and --num-parts: expected both or neither")
    part = None if arguments.part is None else Part(arguments.part, arguments.num_parts or 0)
    preparation = prepare(
        arguments.input,
        Tokenizer.load(arguments.tokenizer),
        arguments.output,
        text_field=arguments.text_field,
        errors=arguments.errors,
        document_boundary=arguments.document_boundary,
        separator=arguments.separator,
        shard_tokens=arguments.shard_tokens,
        workers=arguments.workers,
        part=part,
    )
    folder = f"{arguments.output}/{part.folder}" if part else arguments.output
    print(f"{folder}: {preparation.summary()}")


if __name__ == "__main__":
    cli.run(main)
