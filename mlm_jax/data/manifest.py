"""Contents of a folder of prepared data: file names, manifest, shard records and fingerprint."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlm_jax.data.folders import Folder
from mlm_jax.data.piece_digests import DIGEST_BYTES, num_pieces
from mlm_jax.data.word_bits import num_bytes
from mlm_jax.errors import InputError, one_line
from mlm_jax.files.json_files import parse_json
from mlm_jax.text.encode import Separator, token_dtype

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
PROGRESS_FILE = "progress.json"
TOKENIZER_FOLDER = "tokenizer"
PART_FOLDERS = "part-*-of-*"
OFFSET_DTYPE = np.dtype("<u8")


@dataclass(frozen=True)
class ShardRecord:
    """Manifest entry of one shard: counts, which determine the file sizes, and checksums."""

    documents: int
    tokens: int
    tokens_sha256: str
    documents_sha256: str
    words_sha256: str | None = None
    """Checksum of the bits that tell where words begin; None if the entries of the vocabulary tell."""
    folder: str = ""
    """Subfolder with the shard's files; shards are numbered within each subfolder."""
    checksums_sha256: str | None = None
    """Checksum of the checksums of the pieces of its tokens and words; None if an earlier version prepared it."""

    def token_bytes(self, vocabulary_size: int) -> int:
        """Returns the size of the token file in bytes."""
        return self.tokens * token_dtype(vocabulary_size).itemsize

    @property
    def offset_bytes(self) -> int:
        """Size of the file of document offsets in bytes."""
        return (self.documents + 1) * OFFSET_DTYPE.itemsize

    @property
    def word_bytes(self) -> int:
        """Size of the file of words in bytes."""
        return num_bytes(self.tokens)

    def checksum_bytes(self, vocabulary_size: int) -> int:
        """Returns the size of the file of checksums in bytes."""
        word_bytes = 0 if self.words_sha256 is None else self.word_bytes
        return DIGEST_BYTES * (num_pieces(self.token_bytes(vocabulary_size)) + num_pieces(word_bytes))

    @property
    def entry(self) -> dict[str, int | str]:
        """Entry of the manifest."""
        checksums = {} if self.checksums_sha256 is None else {"checksums_sha256": self.checksums_sha256}
        return self.content | {"folder": self.folder} | checksums

    @property
    def content(self) -> dict[str, int | str]:
        """Part of the entry that the fingerprint covers: neither file locations nor checksums of pieces."""
        entry: dict[str, int | str] = {
            "documents": self.documents,
            "tokens": self.tokens,
            "tokens_sha256": self.tokens_sha256,
            "documents_sha256": self.documents_sha256,
        }
        return entry | ({} if self.words_sha256 is None else {"words_sha256": self.words_sha256})


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Returns the manifest of a complete preparation. Raises InputError if it is missing or of another version."""
    content = folder.read(MANIFEST_FILE)
    file = f"{folder}/{MANIFEST_FILE}"
    if content is None:
        if folder.read(PROGRESS_FILE) is not None:
            raise InputError(
                f"{folder}: the preparation is incomplete; rerun the same mlm-jax prepare command to resume"
            )
        raise InputError(
            f"{folder}: no prepared data here (no {MANIFEST_FILE}); run mlm-jax prepare, or mlm-jax merge for "
            "finished parts"
        )
    try:
        manifest = parse_json(content, file)
        version = manifest["version"]
    except (InputError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: damaged: not a manifest ({one_line(error)}); prepare the folder again"
        ) from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{file}: format version {version!r}, expected {FORMAT_VERSION}; prepare the folder again"
        )
    try:
        records = shard_records(manifest)
        damaged = [name for name, kind in _KINDS.items() if type(manifest.get(name)) is not kind]
        if damaged:
            raise InputError(f"no valid {damaged[0]}")
        _check_totals(manifest["totals"], records)
        _check_dtype(manifest)
    except InputError as error:
        raise InputError(f"{file}: damaged: {error}; prepare the folder again") from error
    return manifest


def _check_dtype(manifest: Mapping[str, Any]) -> None:
    expected = token_dtype(manifest["vocabulary_size"]).name
    if (found := manifest.get("token_dtype", expected)) != expected:
        raise InputError(
            f"token_dtype {found!r}: must be {expected!r}, that of {manifest['vocabulary_size']} entries"
        )


_KINDS = {
    "separator": str,
    "vocabulary_size": int,
    "tokenizer_fingerprint": str,
    "fingerprint": str,
    "settings": dict,
    "totals": dict,
}


def _check_totals(totals: Mapping[str, Any], records: Sequence[ShardRecord]) -> None:
    """Checks the totals, which the fingerprint does not cover. Raises InputError if one is no count or contradicts."""
    for name in ("documents", "tokens", "characters", "skipped", "replaced", *totals):
        found = totals.get(name)
        if type(found) is not int or not 0 <= found < 2**62:
            raise InputError(f"totals: {name} {found!r}: must be a count")
    for name in ("documents", "tokens"):
        held = sum(getattr(record, name) for record in records)
        if totals[name] != held:
            raise InputError(f"totals: {name} {totals[name]}: must be {held}, those of the shards")


def shard_records(manifest: Mapping[str, Any]) -> list[ShardRecord]:
    """Returns the records of a manifest's shards. Raises InputError if one is invalid."""
    try:
        records = [ShardRecord(**record) for record in manifest["shards"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"shards: {one_line(error)}") from error
    for record in records:
        _check_record(record)
    return records


def _check_record(record: ShardRecord) -> None:
    # A manifest may come from a URL, and these become paths.
    optional = [sha256 for sha256 in (record.words_sha256, record.checksums_sha256) if sha256 is not None]
    for digest in (record.tokens_sha256, record.documents_sha256, *optional):
        if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise InputError(f"sha256 {digest!r}: must be 64 hexadecimal digits")
    if not (
        isinstance(record.folder, str) and re.fullmatch("(part-[0-9]{1,9}-of-[0-9]{1,9})?", record.folder)
    ):
        raise InputError(f"folder {record.folder!r}: must be empty or the name of a part")
    for name, count in (("documents", record.documents), ("tokens", record.tokens)):
        if type(count) is not int or not 0 <= count < 2**48:
            raise InputError(f"{name} {count!r}: must be a count")


def shard_names(records: Iterable[ShardRecord]) -> list[tuple[str, str, str, str]]:
    """Returns the file names of each shard, relative to the manifest, in the order of `shard_file_names`."""
    numbers: Counter[str] = Counter()
    names = []
    for record in records:
        prefix = f"{record.folder}/" if record.folder else ""
        names.append(shard_file_names(numbers[record.folder], prefix))
        numbers[record.folder] += 1
    return names


def shard_file_names(number: int, prefix: str = "") -> tuple[str, str, str, str]:
    """Returns the file names of the tokens, the document offsets, the words and the checksums of shard `number`."""
    tokens, documents, words, checksums = (
        f"{prefix}{part}-{number:05d}.bin" for part in ("tokens", "documents", "words", "checksums")
    )
    return tokens, documents, words, checksums


def check_shard_files(folder: Folder, records: Sequence[ShardRecord], vocabulary_size: int) -> None:
    """Raises InputError if a file of a shard is missing or its size does not match its record."""
    sizes = folder.sizes({record.folder for record in records})
    for record, names in zip(records, shard_names(records), strict=True):
        expected_sizes = (
            record.token_bytes(vocabulary_size),
            record.offset_bytes,
            None if record.words_sha256 is None else record.word_bytes,
            None if record.checksums_sha256 is None else record.checksum_bytes(vocabulary_size),
        )
        for name, expected in zip(names, expected_sizes, strict=True):
            if expected is None:
                continue
            found = sizes.get(name)
            if found is None:
                raise InputError(f"{folder}/{name}: missing; prepare the folder again")
            if found != expected:
                raise InputError(
                    f"{folder}/{name}: {found} bytes, expected {expected}; prepare the folder again"
                )


def content_fingerprint(
    separator: Separator, vocabulary_size: int, tokenizer_fingerprint: str, records: Iterable[ShardRecord]
) -> str:
    """Returns the hexadecimal sha256 of everything that determines the tokens of a store, except file locations."""
    contents = [record.content for record in records]
    parts = [FORMAT_VERSION, separator, vocabulary_size, tokenizer_fingerprint, contents]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
