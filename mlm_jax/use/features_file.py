"""Writes the features of any number of texts to .npz or .parquet in constant memory."""

import contextlib
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.corpus.progress import progress_bar
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import commit, partial_path, remove_abandoned
from mlm_jax.files.targets import check_target_file, naming_target, without_empty_folders
from mlm_jax.run.reporting import say
from mlm_jax.text.encode import UnknownTokens
from mlm_jax.use.inference import Pooling
from mlm_jax.use.labels import kind_of, listed
from mlm_jax.use.masked_lm import MaskedLM

_TEXTS_AT_ONCE = 1024

Append = Callable[[Sequence[np.ndarray]], None]


def extract_features(
    model: MaskedLM,
    texts: Iterable[str],
    output: str | Path,
    *,
    layers: int | Sequence[int] = -1,
    pooling: Pooling = "mean",
    truncate: bool = False,
    progress: bool = False,
) -> int:
    """Writes the features of every text to `output` atomically, and returns the number of texts.

    .npz: `features`, float32 [texts, hidden_dim]; with pooling "none", [tokens of all texts, hidden_dim] and `offsets`,
    int64 [texts + 1]. .parquet: `id`, the number of the text from 0, and `features`, a list of hidden_dim float32 or,
    with pooling "none", a list of these. A list of layers adds an axis before hidden_dim. Every text has its row: one
    without tokens has the features of [CLS] and [SEP], and stderr reports their number. With `progress`, counts texts
    on stderr if it is a terminal.

    Raises:
        InputError: the output has a different suffix or cannot be created, there is no text, or a text is not a
            string or is too long (the message has its number from 0).
        RunError: the disk is full.

    Warns if more than 1 % of the tokens are unknown, or if a text has the name of a special token.
    """
    output = Path(output)
    if isinstance(texts, str | bytes | Mapping | Set):
        raise InputError(f"texts: found {kind_of(texts)}: must be a list")
    if output.suffix not in (".npz", ".parquet"):
        raise InputError(f"{output}: must end in .npz or .parquet")
    check_target_file(output)
    writer = _npz_writer if output.suffix == ".npz" else _parquet_writer
    shape: tuple[int, ...] = (model.config.hidden_dim,)
    if not isinstance(layers, int | np.integer):
        layers = listed(layers, "layers")
        shape = (len(layers), *shape)
    count, stream = 0, iter(texts)
    empty: list[int] = []
    unknown, literal = UnknownTokens(model.tokenizer), None
    counter = progress_bar(None, "text", shown=progress)
    with naming_target(output), without_empty_folders(output), counter, contextlib.ExitStack() as stack:
        output.parent.mkdir(parents=True, exist_ok=True)
        append = stack.enter_context(writer(output, shape, pooling))
        while chunk := list(islice(stream, _TEXTS_AT_ONCE)):
            try:
                rows = model.encode(chunk, truncate=truncate, unknown=unknown)
            except InputError as error:
                raise InputError(_renumbered(str(error), count)) from error
            literal = literal or model.tokenizer.literal_warning(chunk)
            append(model.features_of_rows(rows, layers=layers, pooling=pooling))
            # Of nothing but [CLS] and [SEP].
            empty += [count + place for place, row in enumerate(rows) if len(row) == 2]
            count += len(chunk)
            counter.update(len(chunk))
        if not count:
            raise InputError(f"{output}: no text: must be at least one")
    if empty:
        say(
            f"{len(empty):,} of {count:,} texts have no tokens, the first is text {empty[0]} (from 0): they have the "
            "features of [CLS] and [SEP] alone"
        )
    for warning in (unknown.warning(), literal):
        if warning:
            warnings.warn(f"texts: {warning}", stacklevel=2)
    return count


def _renumbered(message: str, first: int) -> str:
    """Returns a message on "text N" of a chunk that starts with text `first`, with N from the first text of all."""
    return re.sub(r"^text (\d+)", lambda found: f"text {first + int(found[1])}", message)


@contextlib.contextmanager
def _npz_writer(output: Path, shape: tuple[int, ...], pooling: Pooling) -> Iterator[Append]:
    lengths: list[int] = []
    with tempfile.TemporaryFile(dir=output.parent) as body:

        def append(features: Sequence[np.ndarray]) -> None:
            for array in features:
                lengths.append(len(array) if pooling == "none" else 1)
                body.write(np.ascontiguousarray(array, np.float32).data)

        # The shape precedes the data but is known only at the end, so the data are first written to an unnamed file.
        yield append
        body.seek(0)
        with _whole(output) as path, zipfile.ZipFile(path, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (sum(lengths), *shape)}
                np.lib.format.write_array_header_2_0(member, header)
                shutil.copyfileobj(body, member, 1 << 20)
            if pooling == "none":
                offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
                with archive.open("offsets.npy", "w") as member:
                    np.lib.format.write_array(member, offsets)


@contextlib.contextmanager
def _parquet_writer(output: Path, shape: tuple[int, ...], pooling: Pooling) -> Iterator[Append]:
    # Imported late, because pyarrow takes longer to import than the rest of this module.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    vector = pa.float32()
    for size in reversed(shape):
        vector = pa.list_(vector, size)
    kind = pa.list_(vector) if pooling == "none" else vector
    schema = pa.schema([("id", pa.int64()), ("features", kind)])
    written = 0

    def column(features: Sequence[np.ndarray]) -> Any:
        vectors = pa.array(np.concatenate([np.ravel(array) for array in features]), pa.float32())
        for size in reversed(shape):
            vectors = pa.FixedSizeListArray.from_arrays(vectors, size)
        if pooling != "none":
            return vectors
        offsets = np.concatenate([[0], np.cumsum([len(array) for array in features])])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), vectors)

    with _whole(output) as path, pq.ParquetWriter(path, schema) as writer:

        def append(features: Sequence[np.ndarray]) -> None:
            nonlocal written
            numbers = pa.array(range(written, written + len(features)), pa.int64())
            writer.write_table(pa.table([numbers, column(features)], schema=schema))
            written += len(features)

        yield append


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """Yields a path to write to, which is renamed to `output` at the end of the block, or deleted if it fails."""
    remove_abandoned(output)
    partial = partial_path(output)
    try:
        yield partial
        with partial.open("r+b") as written:
            commit(written, output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
