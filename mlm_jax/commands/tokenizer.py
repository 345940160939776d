"""`mlm-jax tokenizer`: train a WordPiece vocabulary on text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_jax.commands.flags import parse, required
from mlm_jax.errors import InputError
from mlm_jax.text.document_formats import DocumentBoundary, ErrorPolicy, Format

if TYPE_CHECKING:
    from mlm_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Arguments:
    """Train a WordPiece vocabulary on text, and write tokenizer.json and vocab.txt."""

    input: tuple[str, ...] = required("FILE")
    """Files, folders, globs and URLs: .txt, .jsonl, .csv, .tsv (also compressed) or .parquet; - is standard input."""
    output: str = required("DIR")
    """Folder for tokenizer.json, vocab.txt and tokenizer_config.json."""
    vocab_size: int = 8192
    """Number of entries, including the five special ones."""
    text_field: str = "text"
    """JSON field or column that holds the text; "meta.text" is a field of an object."""
    document_boundary: DocumentBoundary = "line"
    """Documents in text files: one per "line", separated by a "blank_line", or one per "file"."""
    format: Format | None = None
    """Format of all files: "txt", "jsonl", "csv", "tsv" or "parquet"; by default that of their suffixes."""
    lowercase: bool = True
    """Lowercase, as in BERT's uncased vocabularies; --no-lowercase keeps case and accents."""
    strip_accents: bool | None = None
    """Strip accents and other marks; by default as --lowercase, unless marks are frequent, as in German or Hindi."""
    max_input_chars_per_word: int = 100
    """A longer word becomes [UNK]; raise it for text without spaces, such as DNA."""
    errors: ErrorPolicy = "strict"
    """Invalid UTF-8: "strict" stops, "replace" substitutes U+FFFD and counts the documents."""
    sample_characters: int = 50_000_000
    """Number of characters to train on, sampled evenly over the input; each takes about 10 bytes of memory."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Trains the vocabulary, saves it and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    from mlm_jax.files.folder_lock import own_folder
    from mlm_jax.files.targets import require_nothing_else
    from mlm_jax.text.corpus import CorpusCounts, read_documents
    from mlm_jax.text.file_systems import check_outside
    from mlm_jax.text.tokenizer import Tokenizer
    from mlm_jax.text.tokenizer_files import TOKENIZER_FILES

    check_outside(parsed.input, Path(parsed.output))
    counts = CorpusCounts()
    documents = read_documents(
        parsed.input,
        text_field=parsed.text_field,
        errors=parsed.errors,
        document_boundary=parsed.document_boundary,
        format=parsed.format,
        counts=counts,
    )
    require_nothing_else(Path(parsed.output), own=TOKENIZER_FILES)
    with own_folder(Path(parsed.output)):
        tokenizer = Tokenizer.train(
            documents,
            parsed.vocab_size,
            lowercase=parsed.lowercase,
            strip_accents=parsed.strip_accents,
            max_input_chars_per_word=parsed.max_input_chars_per_word,
            sample_characters=parsed.sample_characters,
        )
        _require_no_other(Path(parsed.output), tokenizer)
        tokenizer.save(parsed.output)
    empty = f"; {counts.empty_files:,} files without a document" if counts.empty_files else ""
    print(
        f"{parsed.output}: {tokenizer.vocabulary_size:,} entries, fingerprint {tokenizer.fingerprint[:12]}{empty}"
    )


def _require_no_other(folder: Path, tokenizer: "Tokenizer") -> None:
    """Raises InputError if the folder has another tokenizer, with which data may have been prepared."""
    from mlm_jax.text.tokenizer import Tokenizer

    try:
        before = Tokenizer.load(folder)
    except InputError:
        return
    if before.fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"{folder}: has another tokenizer, {before.fingerprint[:12]}, than this text and these flags yield, "
            f"{tokenizer.fingerprint[:12]}; choose another folder, or remove this one"
        )
