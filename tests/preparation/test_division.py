"""Streams depend on the files only, and parts divide them evenly, each stream to exactly one part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.errors import InputError
from mlm_jax.preparation.division import InputFile, Part, corpus_identity, divide

files_of_sizes = st.lists(st.none() | st.integers(1, 50), min_size=1).map(
    lambda sizes: [InputFile(f"/in/{i}.txt", size) for i, size in enumerate(sizes)]
)


def weight(files: list[InputFile], shard_tokens: int) -> int:
    return sum(shard_tokens if file.size is None else file.size for file in files)


@given(files_of_sizes, st.integers(1, 80))
def test_a_stream_ends_with_the_file_that_fills_it(files: list[InputFile], shard_tokens: int) -> None:
    streams = divide(files, shard_tokens)
    assert [file for stream in streams for file in stream] == files
    for stream in streams[:-1]:
        assert weight(stream[:-1], shard_tokens) < shard_tokens <= weight(stream, shard_tokens)
    assert weight(streams[-1][:-1], shard_tokens) < shard_tokens


@given(files_of_sizes, st.integers(1, 80), st.integers(1, 12))
def test_parts_hold_every_stream_once_in_order_and_evenly(
    files: list[InputFile], shard_tokens: int, num_parts: int
) -> None:
    streams = divide(files, shard_tokens)
    shares = [Part(index, num_parts).share(streams, shard_tokens) for index in range(num_parts)]
    assert [stream for share in shares for stream in share] == streams
    largest = max(weight(stream, shard_tokens) for stream in streams)
    for share in shares:
        bound = weight(files, shard_tokens) / num_parts + largest
        assert sum(weight(stream, shard_tokens) for stream in share) <= bound


def test_part_folders_sort_in_the_order_of_the_parts() -> None:
    assert Part(7, 1000).folder == "part-00007-of-01000"
    folders = [Part(index, 1000).folder for index in range(1000)]
    assert sorted(folders) == folders


@pytest.mark.parametrize(
    ("index", "num_parts", "said"),
    [(4, 4, "part 4: expected 0 to 3"), (-1, 4, "part -1: expected 0 to 3"), (0, 0, "num_parts 0")],
)
def test_invalid_parts_are_rejected(index: int, num_parts: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Part(index, num_parts)


def test_corpus_identity_depends_on_names_sizes_and_order() -> None:
    files = [{"name": "a", "bytes": 3}, {"name": "b", "bytes": None}]
    others = [
        files[::-1],
        files[:1],
        [{"name": "a", "bytes": 4}, files[1]],
        [files[0], {**files[1], "name": "c"}],
    ]
    identities = [corpus_identity(inputs)["sha256"] for inputs in (files, *others)]
    assert len(set(identities)) == 5
    assert corpus_identity(files) | {"sha256": ""} == {"files": 2, "bytes": 3, "sha256": ""}
