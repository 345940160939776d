"""`mlm-jax extend`: give a model new words, or another tokenizer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_jax.commands.flags import parse, positional, required
from mlm_jax.corpus.document_formats import DocumentBoundary, ErrorPolicy, Format
from mlm_jax.errors import InputError

if TYPE_CHECKING:
    from mlm_jax.extension.change import Change

_NUM_TOKENS, _MIN_COUNT = 5000, 10


@dataclass(frozen=True)
class Arguments:
    """Give a model new words, or another tokenizer, with rows made from those of their pieces.

    One of --tokens, --from-corpus and --tokenizer is required. With one of the others, --from-corpus only counts how
    often words occur, for the biases of the output layer. Continue the result with `mlm-jax train --from`."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    output: Path = required("FOLDER")
    """Folder to create for the model."""
    tokens: Path | None = None
    """Text file with one new word per line.

    A line that the tokenizer divides at a space or punctuation, such as covid-19, is left out, with a note."""
    from_corpus: tuple[str, ...] = ()
    """Text whose most costly words become entries: .txt, .jsonl, .csv, .tsv or .parquet files, folders, globs, URLs."""
    num_tokens: int | None = None
    """Number of words to take from the corpus; 5,000 by default."""
    min_count: int | None = None
    """Smallest number of times that a word of the corpus must occur; 10 by default."""
    tokenizer: str | None = None
    """Tokenizer to move the model to: a tokenizer's file or folder, or any model, whose tokenizer is taken."""
    vocabulary_multiple: int | None = None
    """Number that the rows of the embedding table are padded to a multiple of, in training; by default the model's."""
    text_field: str = "text"
    """JSON field or column of the corpus that holds the text."""
    document_boundary: DocumentBoundary = "line"
    """Documents in text files: one per "line", separated by a "blank_line", or one per "file"."""
    format: Format | None = None
    """Format of all files of the corpus, whatever their suffixes; required for standard input."""
    errors: ErrorPolicy = "strict"
    """Invalid UTF-8: "strict" stops, "replace" substitutes U+FFFD."""
    sample_characters: int = 50_000_000
    """Number of characters of the corpus to count in, sampled evenly."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Makes the model, writes its folder and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    _check(parsed)
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.corpus.file_systems import check_outside
    from mlm_jax.extension.word_list import read_word_list
    from mlm_jax.files.atomic import new_folder
    from mlm_jax.formats.model_folder import write_model_folder
    from mlm_jax.run.reporting import say

    check_outside(parsed.from_corpus, parsed.output)
    with new_folder(parsed.output) as partial:
        listed = read_word_list(parsed.tokens) if parsed.tokens else []
        chunks = _chunks(parsed) if parsed.from_corpus else Counter()
        change = _change(parsed, listed, chunks)
        for note in change.notes:
            say(note)
        write_model_folder(partial, change.model)
    _summarize(parsed, change, chunks)


def _check(parsed: Arguments) -> None:
    """Raises InputError for flags that do not belong together."""
    ways = {"--tokens": parsed.tokens, "--from-corpus": parsed.from_corpus, "--tokenizer": parsed.tokenizer}
    if not any(ways.values()):
        raise InputError(f"one of {', '.join(ways)} is required; mlm-jax extend --help lists the flags")
    if parsed.tokens and parsed.tokenizer:
        raise InputError(
            "--tokens and --tokenizer: must be one of them; extend the moved model in a second step"
        )
    for name, value in {"--num-tokens": parsed.num_tokens, "--min-count": parsed.min_count}.items():
        if value is not None and (parsed.tokens or parsed.tokenizer):
            other = "--tokens" if parsed.tokens else "--tokenizer"
            raise InputError(f"{name}: must be left out with {other}, which names the entries")
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: must be at least 1")
    for name, number in {
        "--vocabulary-multiple": parsed.vocabulary_multiple,
        "--sample-characters": parsed.sample_characters,
    }.items():
        if number is not None and number < 1:
            raise InputError(f"{name} {number}: must be at least 1")


def _chunks(parsed: Arguments) -> "Counter[str]":
    from mlm_jax.corpus.documents import read_documents
    from mlm_jax.extension.word_counts import count_chunks
    from mlm_jax.vocabulary.wordpiece import sample_documents

    documents = read_documents(
        parsed.from_corpus,
        text_field=parsed.text_field,
        errors=parsed.errors,
        document_boundary=parsed.document_boundary,
        format=parsed.format,
    )
    return count_chunks(sample_documents(documents, parsed.sample_characters))


def _change(parsed: Arguments, listed: Sequence[str], chunks: "Counter[str]") -> "Change":
    from mlm_jax.extension.change import add_costly_words, add_words, move
    from mlm_jax.store.hub import find_tokenizer
    from mlm_jax.store.loading import load_model
    from mlm_jax.text.tokenizer import Tokenizer

    # Before the weights: it may not exist.
    tokenizer = Tokenizer.load(find_tokenizer(parsed.tokenizer)) if parsed.tokenizer else None
    model = load_model(parsed.model)
    if parsed.vocabulary_multiple is not None:
        config = replace(model.config, vocabulary_multiple=parsed.vocabulary_multiple)
        model = replace(model, config=config)
    if tokenizer is not None:
        return move(str(parsed.tokenizer), model, tokenizer, chunks)
    if parsed.tokens is not None:
        return add_words(str(parsed.tokens), model, listed, chunks)
    return add_costly_words(
        parsed.from_corpus[0],
        model,
        chunks,
        num_tokens=parsed.num_tokens or _NUM_TOKENS,
        min_count=parsed.min_count or _MIN_COUNT,
    )


def _summarize(parsed: Arguments, change: "Change", chunks: "Counter[str]") -> None:
    made, rows = change.origins.made, len(change.origins.kept)
    without = sum(not pieces for pieces in made.values())
    parts = [
        f"{rows:,} rows, {rows - len(made):,} of them kept and {len(made):,} made of those of their pieces"
    ]
    if change.num_reused:
        parts.append(f"{change.num_reused:,} in place of unused entries")
    if without:
        parts.append(f"{without:,} without a known piece, which are the mean of all")
    print(f"{parsed.output}: {', '.join(parts)}")
    counts, num_words = change.counts, sum(chunks.values())
    if counts is None:
        return
    before, after = counts.old.sum() / num_words, counts.new.sum() / num_words
    print(f"{before:.3f} tokens per word before, {after:.3f} after ({num_words:,} words between spaces)")
