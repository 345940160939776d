"""Divides the input files into streams, and the streams among the parts of a preparation.

A stream is a sequence of consecutive files, and no shard spans two streams. The streams depend only on the files, and
each belongs to one part, so the shards are byte-identical for any number of parts.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from mlm_jax.corpus.document_formats import ReadOptions
from mlm_jax.corpus.documents import expand_paths, file_size
from mlm_jax.corpus.file_systems import check_outside, local_path
from mlm_jax.errors import InputError


@dataclass(frozen=True)
class InputFile:
    """An input file; `size` is in bytes as stored, or None if its file system does not report one."""

    path: str
    size: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """Entry in a manifest. It omits the folder, so that a corpus may be moved while it is prepared."""
        return {"name": Path(self.path).name, "bytes": self.size}


@dataclass(frozen=True)
class Part:
    """One of the `num_parts` jobs that share a preparation; `index` counts from 0.

    Raises:
        InputError: `index` or `num_parts` is out of range.
    """

    index: int
    num_parts: int

    def __post_init__(self) -> None:
        if self.num_parts < 1:
            raise InputError(f"num_parts {self.num_parts}: expected at least 1")
        if not 0 <= self.index < self.num_parts:
            raise InputError(
                f"part {self.index}: expected 0 to {self.num_parts - 1} for {self.num_parts} parts"
            )

    @property
    def folder(self) -> str:
        """Name of the part's folder inside the folder of the preparation."""
        return f"part-{self.index:05d}-of-{self.num_parts:05d}"

    def share(self, streams: Sequence[Sequence[InputFile]], shard_tokens: int) -> list[Sequence[InputFile]]:
        """Returns the streams, possibly none, whose middle is in this part's equal share of all bytes.

        A part therefore reads at most its equal share plus one stream.
        """
        sizes = [sum(_size(file, shard_tokens) for file in stream) for stream in streams]
        ends = list(accumulate(sizes))
        return [
            stream
            for stream, size, end in zip(streams, sizes, ends, strict=True)
            if (2 * end - size) * self.num_parts // (2 * ends[-1]) == self.index
        ]


def input_files(paths: Sequence[str], output: Path, options: ReadOptions) -> list[InputFile]:
    """Returns the files that match `paths`, in the order of `expand_paths`.

    Raises InputError if files of the folder `output` are among them, or would be once it has files.
    """
    # Path.resolve raises a RuntimeError for a link to itself.
    output = Path(os.path.realpath(output))
    check_outside(paths, output)
    files = expand_paths(paths, options)
    for path in map(local_path, files):
        if path and output in Path(os.path.realpath(path)).parents:
            raise InputError(
                f"{path}: is inside the output folder {output}; expected input from outside, or another output folder"
            )
    return [InputFile(path, file_size(path)) for path in files]


def divide(files: Sequence[InputFile], shard_tokens: int) -> list[Sequence[InputFile]]:
    """Divides files into streams; each ends with the file that brings it to `shard_tokens` bytes as stored.

    A token takes more than one byte of text, compressed or not, so the first shard of a stream is rarely small.
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
    """Returns a summary that identifies a list of `InputFile.identity`."""
    sha256 = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return {"files": len(inputs), "bytes": sum(file["bytes"] or 0 for file in inputs), "sha256": sha256}


def part_settings(part: Part, files: Sequence[InputFile]) -> dict[str, Any]:
    """Returns the settings found only in the manifest of a part: the part and a summary of all files."""
    return {"part": asdict(part), "corpus": corpus_identity([file.identity for file in files])}


def _size(file: InputFile, shard_tokens: int) -> int:
    return shard_tokens if file.size is None else file.size
