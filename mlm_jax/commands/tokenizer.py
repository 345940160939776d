"""`mlm-jax tokenizer`: train a tokenizer on text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_jax.commands.flags import parse, repeated, required
from mlm_jax.commands.process import as_text
from mlm_jax.corpus.document_formats import DocumentBoundary, ErrorPolicy, Format
from mlm_jax.errors import InputError
from mlm_jax.text.training import Kind

if TYPE_CHECKING:
    from mlm_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Arguments:
    """Train a tokenizer on text, and write tokenizer.json."""

    input: tuple[str, ...] = required("FILE")
    """Files, folders, globs and URLs: .txt, .jsonl, .csv, .tsv (also compressed) or .parquet; - is standard input."""
    output: str = required("DIR")
    """Folder for tokenizer.json, tokenizer_config.json and, of some kinds, vocab.txt."""
    kind: Kind = "wordpiece"
    """Kind: "wordpiece", "byte-bpe", "unigram", "characters" or "k-mers"; docs/data.md compares them."""
    vocab_size: int = 8192
    """Number of entries, including special, reserved and user tokens."""
    text_field: str = "text"
    """JSON field or column that holds the text; "meta.text" is a field of an object."""
    document_boundary: DocumentBoundary = "line"
    """Documents in text files: one per "line", separated by a "blank_line", or one per "file"."""
    format: Format | None = None
    """Format of all files: "txt", "jsonl", "csv", "tsv" or "parquet"; by default that of their suffixes."""
    lowercase: bool | None = None
    """Lowercase, as BERT's uncased models do; by default only "wordpiece" does. --no-lowercase also keeps accents."""
    strip_accents: bool | None = None
    """Strip accents and other marks; by default as --lowercase, unless marks are frequent, as in German or Hindi."""
    max_input_chars_per_word: int = 100
    """Of "wordpiece": a longer word becomes [UNK]; raise it for text without spaces, such as DNA."""
    reserved: int = 0
    """Number of entries [unused0], [unused1], … that no text has, for tokens that are added later."""
    user_token: tuple[str, ...] = repeated()
    """Token that is found in text before anything else, such as an entity marker; may be given several times."""
    k: int = 6
    """Of "k-mers": the number of characters; k-mers do not overlap."""
    errors: ErrorPolicy = "strict"
    """Invalid UTF-8: "strict" stops, "replace" substitutes U+FFFD and counts the documents."""
    sample_characters: int = 50_000_000
    """Number of characters to train on, sampled evenly over the input; each takes about 10 bytes of memory."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Trains the vocabulary, saves it and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    from mlm_jax.corpus.documents import CorpusCounts, read_documents
    from mlm_jax.corpus.file_systems import check_outside
    from mlm_jax.files.folder_lock import own_folder
    from mlm_jax.files.targets import require_nothing_else
    from mlm_jax.text.tokenizer import Tokenizer
    from mlm_jax.vocabulary.files import TOKENIZER_FILES

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
            kind=parsed.kind,
            reserved=parsed.reserved,
            user_tokens=[as_text(token) for token in parsed.user_token],
            k=parsed.k,
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
