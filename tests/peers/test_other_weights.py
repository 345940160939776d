"""Weights of transformers' Flax and TensorFlow classes have the outputs of its torch classes.

transformers 5 reads no such files. They are written here as transformers 4.57.6 wrote them;
tests/formats/test_torch_layout.py has some of its names.
"""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file

from mlm_jax.formats import hugging_face
from mlm_jax.store.reference_outputs import fixed_batch, largest_difference, our_outputs
from tests.formats.other_weights import WRITERS
from tests.peers.test_hugging_face import published

pytestmark = pytest.mark.peers


def test_outputs_are_those_of_the_torch_class(tmp_path: Path) -> None:
    folder = published(tmp_path / "source", "BertForMaskedLM")
    weights = load_file(folder / "model.safetensors")
    batch = fixed_batch(hugging_face.read(folder).model.config)
    expected = hugging_face.outputs(folder, batch)
    for kind, write in WRITERS.items():
        for file in ("model.safetensors", "flax_model.msgpack"):
            (folder / file).unlink(missing_ok=True)
        write(weights, folder / kind.split(maxsplit=1)[0])
        ours = our_outputs(hugging_face.read(folder).model, batch)
        assert largest_difference(ours, expected, batch) <= 1e-5
        # The certificate of a conversion compares with what transformers computes for the same folder.
        assert largest_difference(hugging_face.outputs(folder, batch), expected, batch) == 0
