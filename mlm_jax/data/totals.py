"""Counts of a preparation, what they say about it, and its manifest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from mlm_jax.data.manifest import FORMAT_VERSION, ShardRecord, content_fingerprint
from mlm_jax.text.encode import token_dtype


@dataclass(frozen=True)
class Totals:
    """Total counts of a preparation.

    characters: in the documents kept. skipped: documents without text or without tokens. replaced: documents
    in which invalid text was replaced. unknown_tokens: [UNK] among the tokens. separators: tokens that end documents.
    empty_files: files without a document.
    """

    documents: int
    tokens: int
    characters: int
    skipped: int
    replaced: int
    unknown_tokens: int = 0
    separators: int = 0
    empty_files: int = 0

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Self:
        """Returns the totals in a manifest; those that earlier versions did not count are 0."""
        return cls(**{field.name: manifest["totals"].get(field.name, 0) for field in fields(cls)})

    def summary(self, duplicates: int = 0) -> str:
        """Returns the totals on one line, with a number of duplicates."""
        line = f"{self.documents:,} documents, {self.tokens:,} tokens, {self.characters:,} characters"
        details = (
            (self.skipped, "documents skipped"),
            (self.replaced, "with invalid text replaced"),
            (duplicates, "exact duplicates"),
            (self.empty_files, "files without a document"),
        )
        found = [f"{count:,} {what}" for count, what in details if count]
        if self.unknown_tokens:
            found.append(f"{self.unknown_share:.2%} of the tokens unknown")
        return f"{line} ({', '.join(found)})" if found else line

    @property
    def unknown_share(self) -> float:
        """Share of unknown tokens among the tokens without separators."""
        return self.unknown_tokens / max(self.tokens - self.separators, 1)


@dataclass(frozen=True)
class Preparation:
    """Result of `prepare`.

    seconds and text_bytes (UTF-8) cover this call; 0 if everything was already done. warnings: about the content.
    duplicates: documents whose text is that of an earlier one of the same call; an estimate for large corpora
    (`mlm_jax.corpus.document_hashes`). evaluation: the documents that were held out, if any.
    """

    totals: Totals
    seconds: float
    text_bytes: int
    warnings: tuple[str, ...] = ()
    duplicates: int = 0
    evaluation: "Preparation | None" = None

    def summary(self) -> str:
        """Returns the totals on one line, with the time of this call or a note that there was nothing to do."""
        if not self.seconds:
            return f"{self.totals.summary()}; already complete, nothing to do"
        speed = self.text_bytes / 1e6 / self.seconds
        return f"{self.totals.summary(self.duplicates)}; {self.seconds:.1f} s, {speed:.2f} MB/s"


def manifest_content(settings: dict[str, Any], totals: Totals, shards: Sequence[ShardRecord]) -> bytes:
    """Returns the content of the manifest of a preparation with `settings`."""
    identity = (settings["separator"], settings["vocabulary_size"], settings["tokenizer_fingerprint"])
    return json_bytes(
        {
            "version": FORMAT_VERSION,
            "fingerprint": content_fingerprint(*identity, shards),
            "token_dtype": token_dtype(settings["vocabulary_size"]).name,
            "separator": settings["separator"],
            "vocabulary_size": settings["vocabulary_size"],
            "tokenizer_fingerprint": settings["tokenizer_fingerprint"],
            "totals": asdict(totals),
            "settings": settings,
            "shards": [shard.entry for shard in shards],
        }
    )


def json_bytes(content: dict[str, Any]) -> bytes:
    """Returns the content of a JSON file."""
    return (json.dumps(content, indent=2) + "\n").encode()
