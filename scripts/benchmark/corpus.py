"""Text for the benchmarks: the user's files, or the demo's text."""

import itertools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from mlm_jax.corpus.documents import read_documents
from mlm_jax.preparation.prepare import prepare
from mlm_jax.text.tokenizer import Tokenizer

_VOCABULARY_SIZE = 8192
_WORDS_PER_PASSAGE = 90


def text_files(texts: tuple[Path, ...]) -> list[str]:
    """Returns the paths in `texts`, or the path of the demo's text if there are none."""
    demo = resources.files("mlm_jax.demo").joinpath("landmarks.txt")
    return [str(path) for path in texts] or [str(demo)]


def prepare_for_benchmark(paths: list[str], folder: Path) -> Path:
    """Writes the shards of `paths` and a tokenizer trained on them to `folder`, and returns the folder."""
    prepare(paths, Tokenizer.train(read_documents(paths), _VOCABULARY_SIZE), folder)
    return folder


def passages(documents: list[str]) -> list[str]:
    """Cuts documents into passages of about 128 tokens, for libraries that truncate a string to one row."""
    cut = []
    for document in documents:
        words = document.split()
        cut += [
            " ".join(words[start : start + _WORDS_PER_PASSAGE])
            for start in range(0, len(words), _WORDS_PER_PASSAGE)
        ]
    return cut


def document_slices(paths: list[str], documents: int) -> Iterator[list[str]]:
    """Yields slices of `documents` consecutive documents, starting again after the last document."""
    endless = itertools.chain.from_iterable(read_documents(paths) for _ in itertools.count())
    while True:
        yield list(itertools.islice(endless, documents))
