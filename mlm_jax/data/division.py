"""Which input files are tokenised as one stream, and which of the streams a part of a preparation takes.

A stream is some consecutive files; shards end with it. Streams follow from the files alone, and a part takes whole
ones: the shards are the same, byte for byte, however many parts make them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from mlm_jax.errors import InputError
from mlm_jax.text.corpus import expand_paths, file_size


@dataclass(frozen=True)
class InputFile:
    """An input file; size in bytes as stored, or None where its file system does not tell."""

    path: str
    size: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """What a manifest says of it: without its folder, so that a corpus may move while it is prepared."""
        return {"name": Path(self.path).name, "bytes": self.size}


@dataclass(frozen=True)
class Part:
    """One of the `num_parts` jobs that share a preparation: number `index`, from 0.

    Raises:
        InputError: there is no such part.
    """

    index: int
    num_parts: int

    def __post_init__(self) -> None:
        if self.num_parts < 1:
            raise InputError(f"num_parts {self.num_parts}: expected at least 1")
        if not 0 <= self.index < self.num_parts:
            raise InputError(
                f"part {self.index}: expected 0 to {self.num_parts - 1}, of {self.num_parts} parts"
            )

    @property
    def folder(self) -> str:
        """The name of its folder inside that of the preparation."""
        return f"part-{self.index:05d}-of-{self.num_parts:05d}"

    def share(self, streams: Sequence[Sequence[InputFile]], shard_tokens: int) -> list[Sequence[InputFile]]:
        """The streams whose middle lies in this part's equal share of all bytes; none where there are too few.

        So a part reads at most its equal share and one stream more.
        """
        sizes = [sum(_size(file, shard_tokens) for file in stream) for stream in streams]
        ends = list(accumulate(sizes))
        return [
            stream
            for stream, size, end in zip(streams, sizes, ends, strict=True)
            if (2 * end - size) * self.num_parts // (2 * ends[-1]) == self.index
        ]


def input_files(paths: Sequence[str]) -> list[InputFile]:
    """The files that `paths` stand for, as `expand_paths` orders them."""
    return [InputFile(path, file_size(path)) for path in expand_paths(paths)]


def divide(files: Sequence[InputFile], shard_tokens: int) -> list[Sequence[InputFile]]:
    """Streams of consecutive files: one ends with the file that brings it to `shard_tokens` bytes as stored.

    A token takes more than a byte of text, compressed or not, so a stream seldom ends before its first shard is
    a good part full.
    """
    streams: list[list[InputFile]] = [[]]
    held = 0
    for file in files:
        if held >= shard_tokens:
            streams.append([])
            held = 0
        streams[-1].append(file)
        held += _size(file, shard_tokens)
    return list(streams)


def corpus_identity(inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What tells one list of `InputFile.identity` from another, in a few words."""
    sha256 = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return {"files": len(inputs), "bytes": sum(file["bytes"] or 0 for file in inputs), "sha256": sha256}


def part_settings(part: Part, files: Sequence[InputFile]) -> dict[str, Any]:
    """What the manifest of a part says beyond that of a whole preparation: which part, and of which files."""
    return {"part": asdict(part), "corpus": corpus_identity([file.identity for file in files])}


def _size(file: InputFile, shard_tokens: int) -> int:
    return shard_tokens if file.size is None else file.size
