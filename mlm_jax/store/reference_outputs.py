"""Outputs of a format's own library for a folder, and our outputs for the same batch.

The library runs in a child process, to separate its memory, threads and environment from the conversion.
"""

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError, one_line
from mlm_jax.formats.model_folder import StoredModel
from mlm_jax.model.bert import BertEncoder, abstract_masked_lm
from mlm_jax.model.layers import split_model

# Name of the installed package that reads each format.
LIBRARIES: Mapping[str, str] = {
    "hugging_face": "transformers",
    "google_tf": "bert-tensorflow",
    "keras_hub": "keras-hub",
}
_ROWS, _LENGTH = 3, 24
_EXIT_ABSENT = 3


@dataclass(frozen=True)
class Reference:
    """A library's outputs, or the reason why it could not be run."""

    library: str
    outputs: np.ndarray | None
    reason: str = ""


def fixed_batch(config: BertConfig) -> dict[str, np.ndarray]:
    """Returns `token_ids`, `padding_mask` and `segment_ids`: int32 [3, 24], or shorter if the model's limit is shorter.

    The batch is the same on every call. Its ids come from the whole vocabulary, its rows have three lengths, and it has
    two segments if the model supports them.
    """
    length = min(_LENGTH, config.max_sequence_length)
    random = np.random.RandomState(0)
    lengths = np.maximum(1, length * np.array([4, 3, 2]) // 4)
    padding_mask = np.arange(length) < lengths[:, None]
    segments = (np.arange(length) >= lengths[:, None] // 2) & padding_mask & (config.num_segments > 1)
    ids = random.randint(0, config.vocabulary_size, (_ROWS, length)) * padding_mask
    arrays = {"token_ids": ids, "padding_mask": padding_mask, "segment_ids": segments}
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def our_outputs(model: StoredModel, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the masked LM's logits [B, L, V], the classifier's [B, C], those of a head for tokens [B, L, C], or the
    hidden states [B, L, D]; float32."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model.params)
    config = model.config
    graph, _ = split_model(nnx.eval_shape(lambda: BertEncoder(config, key=jax.random.key(0))))
    inputs = (jnp.asarray(batch["token_ids"]), jnp.asarray(batch["padding_mask"], bool))
    segment_ids = jnp.asarray(batch["segment_ids"]) if config.num_segments else None
    if "head" in params:
        masked_lm, _ = split_model(abstract_masked_lm(config))
        positions = jnp.broadcast_to(jnp.arange(inputs[0].shape[1]), inputs[0].shape)
        parts = {part: params[part] for part in ("encoder", "head")}
        return np.asarray(nnx.merge(masked_lm, parts)(*inputs, positions, segment_ids))
    encoder = nnx.merge(graph, params["encoder"])
    hidden = encoder(*inputs, segment_ids)
    for part in ("token_classifier", "question_answering"):
        if part in params:
            return np.asarray(hidden @ params[part]["kernel"] + params[part]["bias"][None, None])
    if "classifier" not in params:
        return np.asarray(hidden)
    pooled = encoder.pooler.pool(hidden, inputs[1])
    return np.asarray(pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"][None])


def largest_difference(outputs: np.ndarray, others: np.ndarray, batch: Mapping[str, np.ndarray]) -> float:
    """Returns the largest absolute difference at real tokens. Libraries need not agree on padding.

    Raises:
        InputError: the outputs differ in shape.
    """
    if outputs.shape != others.shape:
        raise InputError(
            f"the library's outputs have shape {others.shape}: must be the shape of ours, {outputs.shape}"
        )
    difference = np.abs(outputs.astype(np.float64) - others)
    if outputs.ndim == 3:
        difference = difference[batch["padding_mask"].astype(bool)]
    return float(difference.max())


def ask_library(format_name: str, folder: Path, batch: Mapping[str, Any]) -> Reference:
    """Returns the outputs of the format's own library for the folder.

    Raises:
        InputError: the library is installed but does not accept the folder. The message includes its error.
    """
    library = LIBRARIES[format_name]
    with tempfile.TemporaryDirectory(prefix="mlm_jax_reference_") as exchange:
        np.savez(Path(exchange) / "batch.npz", **batch)
        # One device, no network, and no variables that configure jax in this process.
        variables = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        variables["KERAS_BACKEND"] = "jax"
        variables.pop("XLA_FLAGS", None)
        child = subprocess.run(
            [sys.executable, "-m", __name__, format_name, str(folder), exchange],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        if child.returncode == _EXIT_ABSENT:
            return Reference(library, None, last)
        if child.returncode:
            raise InputError(f"{folder}: {library} does not accept it: {last}")
        return Reference(f"{library} {version(library)}", np.load(Path(exchange) / "outputs.npy"))


def main(format_name: str, folder: str, exchange: str) -> int:
    """Runs in the child process: writes the library's outputs to the folder `exchange`."""
    module = import_module(f"mlm_jax.formats.{format_name}")
    batch = dict(np.load(Path(exchange) / "batch.npz"))
    try:
        outputs = module.outputs(Path(folder), batch)
    except ImportError as error:
        print(error, file=sys.stderr)
        return _EXIT_ABSENT
    # The last line of a traceback may be one of a traceback in the message, as TensorFlow's are.
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {one_line(error, 500)}", file=sys.stderr)
        return 1
    np.save(Path(exchange) / "outputs.npy", np.asarray(outputs, np.float32))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
