"""`mlm-jax prepare`: tokenize text into the shards that training reads."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlm_jax.commands.flags import parse, required
from mlm_jax.corpus.document_formats import DocumentBoundary, ErrorPolicy, Format
from mlm_jax.errors import InputError
from mlm_jax.shards.token_store import DEFAULT_SHARD_TOKENS
from mlm_jax.text.encode import Separator

if TYPE_CHECKING:
    from mlm_jax.preparation.division import Part
    from mlm_jax.preparation.prepare import Preparation


@dataclass(frozen=True)
class Arguments:
    """Tokenize text into the shards that training reads. Rerun the same command to resume after an interruption."""

    input: tuple[str, ...] = required("FILE")
    """Files, folders, globs and URLs: .txt, .jsonl, .csv, .tsv (also compressed) or .parquet; - is standard input."""
    tokenizer: str = required("TOKENIZER")
    """vocab.txt, tokenizer.json, a folder that contains one, or a MODEL, such as a run or hf://user/model."""
    output: str = required("DIR")
    """Folder for the shards and their manifest."""
    text_field: str = "text"
    """JSON field or column that holds the text; "meta.text" is a field of an object."""
    document_boundary: DocumentBoundary = "line"
    """Documents in text files: one per "line", separated by a "blank_line", or one per "file"."""
    format: Format | None = None
    """Format of all files: "txt", "jsonl", "csv", "tsv" or "parquet"; by default that of their suffixes."""
    eval_share: float | None = None
    """Hold out this share of the documents, chosen by a hash of their text, in the subfolder "eval"."""
    errors: ErrorPolicy = "strict"
    """Invalid UTF-8: "strict" stops, "replace" substitutes U+FFFD and counts the documents."""
    separator: Separator = "sep"
    """Token that ends each document: "sep" for [SEP], or "none"."""
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    """Tokens per shard; a shard ends with the document that reaches this number."""
    workers: int | None = None
    """Number of threads; by default one per core, at most four. The output does not depend on it."""
    part: int | None = None
    """Prepare only this part, from 0, of --num-parts; then run `mlm-jax merge` on the output."""
    num_parts: int | None = None
    """Number of parts: one per job of a job array, on any machine and in any order."""
    engine: Literal["ray"] | None = None
    """Prepare all --num-parts as tasks of a "ray" cluster, and merge them."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Prepares the data and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    if parsed.engine and (parsed.part is not None or parsed.num_parts is None):
        raise InputError(
            "--engine: must be given with --num-parts and without --part, because it prepares all parts"
        )
    if not parsed.engine and (parsed.part is None) != (parsed.num_parts is None):
        raise InputError("--part and --num-parts: must be given together, or neither of them")
    from mlm_jax.preparation.division import Part
    from mlm_jax.preparation.prepare import prepare
    from mlm_jax.store.hub import find_tokenizer
    from mlm_jax.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(find_tokenizer(parsed.tokenizer))
    settings: dict[str, Any] = {
        "text_field": parsed.text_field,
        "errors": parsed.errors,
        "document_boundary": parsed.document_boundary,
        "format": parsed.format,
        "eval_share": parsed.eval_share,
        "separator": parsed.separator,
        "shard_tokens": parsed.shard_tokens,
        "workers": parsed.workers,
    }
    if parsed.engine:
        from mlm_jax.commands import merge
        from mlm_jax.preparation.ray_parts import prepare_parts

        for part, preparation in prepare_parts(
            parsed.input, tokenizer, parsed.output, num_parts=parsed.num_parts or 0, **settings
        ):
            _report(parsed.output, preparation, part)
        merge.main([parsed.output], prog)
        return
    own = None if parsed.part is None else Part(parsed.part, parsed.num_parts or 0)
    _report(parsed.output, prepare(parsed.input, tokenizer, parsed.output, part=own, **settings), own)


def _report(output: str, preparation: "Preparation", part: "Part | None") -> None:
    for folder, side in ((output, preparation), (f"{output}/eval", preparation.evaluation)):
        if side:
            print(f"{folder}/{part.folder}: {side.summary()}" if part else f"{folder}: {side.summary()}")
            for warning in side.warnings:
                print(f"warning: {folder}: {warning}", file=sys.stderr)
