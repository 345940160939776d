"""Damaged and hostile files: every reader returns finite numbers or one line that names what is wrong, soon.

A few mutations of each file run by default, some hundred in `make test-release`.
"""

import json
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from mlm_jax.errors import InputError, RunError
from mlm_jax.files.folder_lock import lock_folder
from mlm_jax.formats import google_tf, hugging_face, keras_hub
from mlm_jax.formats.model_folder import write_model_folder
from mlm_jax.report.state import read_sweep
from mlm_jax.run.plots import plot_losses
from mlm_jax.shards.token_store import open_shards
from mlm_jax.store.format_registry import read_architecture, read_model
from mlm_jax.store.run_folder import read_config
from mlm_jax.text.tokenizer import Tokenizer
from tests.formats.folders import hugging_face_folder, state_dict
from tests.formats.other_weights import write_flax, write_tf_h5
from tests.report.sweeps import write_sweep
from tests.run_small import prepared, uninterrupted

SECONDS, MEMORY_KB = 10.0, 1_500_000


class Reader(NamedTuple):
    """A folder, the file in it that is damaged, and the call that reads it."""

    make: Callable[[Path], Path]
    file: str
    read: Callable[[Path], Any]


def use_model(folder: Path) -> None:
    model = read_model(folder).model
    for leaf in jax.tree.leaves(model.params):
        assert np.isfinite(leaf.astype(np.float32)).all()
    (ids,) = model.tokenizer.encode_batch(["A w5 in w12, w9!"])
    assert (ids < model.config.vocabulary_size).all()
    read_architecture(folder)


def hugging_face_shards(folder: Path) -> Path:
    hugging_face_folder(folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(state_dict(), "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def with_tokenizer_json(folder: Path) -> Path:
    hugging_face_folder(folder, "BertForSequenceClassification")
    Tokenizer.load(folder).save(folder)
    return folder


def pickled(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    hugging_face_folder(folder)
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array) for name, array in state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def flax(folder: Path) -> Path:
    hugging_face_folder(folder)
    (folder / "model.safetensors").unlink()
    write_flax(state_dict(), folder / "flax_model.msgpack")
    return folder


def tensorflow(folder: Path) -> Path:
    hugging_face_folder(folder)
    (folder / "model.safetensors").unlink()
    write_tf_h5(state_dict(), folder / "tf_model.h5")
    return folder


def native(folder: Path) -> Path:
    model = hugging_face.read(hugging_face_folder(folder.with_name("source"))).model
    folder.mkdir()
    write_model_folder(folder, model)
    return folder


def without_checksums(folder: Path) -> Path:
    (native(folder) / "mlm_jax.sha256").unlink()
    return folder


def preset(folder: Path) -> Path:
    source = hugging_face_folder(folder.with_name("source"), "BertForPreTraining")
    model = hugging_face.read(source).model
    params = {part: model.params[part] for part in ("encoder", "head")}
    folder.mkdir()
    expressible = keras_hub.expressible(model.config)
    keras_hub.write(model.__class__(expressible, params, model.tokenizer), folder)
    return folder


def google(folder: Path) -> Path:
    (hugging_face_folder(folder) / "config.json").rename(folder / "bert_config.json")
    return folder


def locked(folder: Path) -> Path:
    folder.mkdir()
    owner = {"host": "elsewhere", "pid": 17, "since": "2026-01-01T00:00:00+00:00", "step": 3}
    (folder / "lock").write_text(f"{json.dumps(owner)}\n" * 2)
    return folder


def copied(source: Callable[[], Path]) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(source(), folder))


READERS = {
    "hugging_face-config.json": Reader(with_tokenizer_json, "config.json", use_model),
    "hugging_face-tokenizer.json": Reader(with_tokenizer_json, "tokenizer.json", use_model),
    "hugging_face-vocab.txt": Reader(hugging_face_folder, "vocab.txt", use_model),
    "hugging_face-model.safetensors": Reader(hugging_face_folder, "model.safetensors", use_model),
    "hugging_face-index.json": Reader(hugging_face_shards, "model.safetensors.index.json", use_model),
    "hugging_face-pytorch_model.bin": Reader(pickled, "pytorch_model.bin", use_model),
    "hugging_face-flax_model.msgpack": Reader(flax, "flax_model.msgpack", use_model),
    "hugging_face-tf_model.h5": Reader(tensorflow, "tf_model.h5", use_model),
    "mlm_jax-config.json": Reader(without_checksums, "config.json", use_model),
    "mlm_jax-model.safetensors": Reader(without_checksums, "model.safetensors", use_model),
    "mlm_jax-checksums": Reader(native, "mlm_jax.sha256", use_model),
    "keras_hub-config.json": Reader(preset, "config.json", use_model),
    "keras_hub-task.json": Reader(preset, "task.json", use_model),
    "keras_hub-tokenizer.json": Reader(preset, "tokenizer.json", use_model),
    "keras_hub-model.weights.h5": Reader(preset, "model.weights.h5", use_model),
    "keras_hub-task.weights.h5": Reader(preset, "task.weights.h5", use_model),
    "google_tf-bert_config.json": Reader(google, "bert_config.json", google_tf.read_architecture),
    "run-config.json": Reader(copied(uninterrupted), "config.json", read_config),
    "run-metrics.jsonl": Reader(copied(uninterrupted), "metrics.jsonl", plot_losses),
    "lock": Reader(locked, "lock", lambda folder: lock_folder(folder).__enter__()),
    "sweep-sweep.json": Reader(write_sweep, "sweep.json", read_sweep),
    "sweep-outcome.json": Reader(write_sweep, "rate_15/seed_0/outcome.json", read_sweep),
    "sweep-metrics.jsonl": Reader(write_sweep, "rate_15/seed_0/metrics.jsonl", read_sweep),
    "data-manifest.json": Reader(copied(prepared), "manifest.json", open_shards),
}

# Values that a JSON file may have in place of any other; the last ones are too large for Python's own writer.
VALUES = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        3,
        2**31,
        2**70,
        10_000_000,
        1e308,
        1e-320,
        float("nan"),
        float("inf"),
        0.5,
    ),
    *("", "a", "0", "x" * 10_000, "\ud800", "\0", "../../etc/passwd", "/etc/passwd", "lücke"),
    *([], {}, [1], [[1, 2]], ["a", "a"], {"a": 1}, {"0": "x"}, {"type": "BertNormalizer"}),
)
RAW_VALUES = (
    *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 90 + b"]" * 90, b"9" * 5000, b"1e999", b'"\\u12"', b"\xff"),
    b'{"a": 1, "a": 2}',
)


def places_in(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every container in a JSON tree with each of its keys."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from places_in(value)


def changed_json(data: bytes, draw: random.Random) -> bytes:
    """Returns JSON, or JSON lines, with another value, a raw value or no value in one place."""
    lines = data.splitlines() if data.count(b"\n{") else [data]
    number = draw.randrange(len(lines))
    tree = json.loads(lines[number])
    container, key = draw.choice(list(places_in(tree))[:400])
    kind = draw.random()
    if kind < 0.15:
        del container[key]
    else:
        container[key] = draw.choice(VALUES) if kind < 0.8 else "RAW"
    lines[number] = json.dumps(tree if draw.random() > 0.05 else draw.choice(VALUES)).encode()
    if kind >= 0.8:
        lines[number] = lines[number].replace(b'"RAW"', draw.choice(RAW_VALUES))
    return b"\n".join(lines)


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """Returns bytes with flipped bits, a part cut out, overwritten, repeated or inserted, or nothing at all."""
    # Headers are at the beginning, the directories of archives at the end.
    size = len(data)
    where = draw.choice(
        (draw.randrange(size), draw.randrange(min(size, 3000)), size - 1 - draw.randrange(min(size, 3000)))
    )
    length = draw.choice((1, 4, 8, 100, 5000))
    changed = bytearray(data)
    match draw.randrange(8):
        case 0 | 1 | 2:
            changed[where] ^= 1 << draw.randrange(8)
        case 3:
            del changed[where:]
        case 4:
            del changed[where : where + length]
        case 5:
            changed[where : where + length] = draw.choice((b"\0", b"\xff", b"9")) * len(
                data[where : where + length]
            )
        case 6:
            changed[where:where] = draw.choice(
                (draw.randbytes(length), data[:length], b"\n", b"\xed\xa0\x80")
            )
        case 7:
            return draw.choice(
                (b"", b"\0", draw.randbytes(100), data * 2, b"\xef\xbb\xbf" + data, data + b"\n\n")
            )
    return bytes(changed)


def read_damaged(name: str, folder: Path, seeds: range) -> None:
    """Reads a folder with every mutation of its file.

    Raises:
        AssertionError: with the mutation, for any error but the two for users, and if a reader takes too long.
    """
    reader = READERS[name]
    whole = reader.make(folder)
    file = whole / reader.file
    data = file.read_bytes()
    reader.read(whole)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        draw = random.Random(f"{name} {seed}")
        is_json = file.suffix in (".json", ".jsonl")
        file.write_bytes(
            changed_json(data, draw) if is_json and draw.random() < 0.7 else damaged_bytes(data, draw)
        )
        started, message = time.perf_counter(), ""
        try:
            reader.read(whole)
        except (InputError, RunError) as error:
            message = str(error)
        # Rust's panics are no Exceptions.
        except BaseException as error:
            kept = folder.with_name("kept")
            kept.write_bytes(file.read_bytes())
            raise AssertionError(f"{name}, seed {seed} ({kept}): {type(error).__name__}: {error}") from error
        assert time.perf_counter() - started < SECONDS, f"{name}, seed {seed}"
        assert message.count("\n") == 0, message
        assert len(message) < 1000, message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEMORY_KB


@pytest.mark.parametrize("name", READERS)
def test_some_damaged_files(name: str, tmp_path: Path) -> None:
    read_damaged(name, tmp_path / "folder", range(6))


@pytest.mark.release
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    read_damaged(name, tmp_path / "folder", range(6, 400))
