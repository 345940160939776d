"""Weights of transformers' TensorFlow classes: the tensors of torch, and one line for another or a hostile file."""

import sys
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.formats import hugging_face
from mlm_jax.formats.tf_h5_files import TF_WEIGHTS_FILE, open_tf_h5
from tests.formats.folders import hugging_face_folder, state_dict
from tests.formats.other_weights import tf_variables, write_tf_h5
from tests.formats.test_hugging_face import ARCHITECTURES, assert_same_tensors, written


def tf_folder(folder: Path, architecture: str = "BertForMaskedLM") -> Path:
    hugging_face_folder(folder, architecture)
    (folder / "model.safetensors").unlink()
    state = state_dict(architecture)
    if architecture == "BertModel":
        # TensorFlow's class has the prefix.
        state = {f"bert.{name}": array for name, array in state.items()}
    write_tf_h5(state, folder / TF_WEIGHTS_FILE)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_those_of_torch(architecture: str, tmp_path: Path) -> None:
    reading = hugging_face.read(tf_folder(tmp_path / "in", architecture))
    assert reading.files == [tmp_path / "in" / TF_WEIGHTS_FILE]
    assert reading.notes == []
    assert_same_tensors(written(reading, tmp_path / "out"), state_dict(architecture))


def test_names_in_the_file() -> None:
    """A few names that transformers wrote, so that the writer of these tests is that of the library."""
    assert {
        "bert/tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0",
        "bert/tf_bert_for_masked_lm/bert/embeddings/position_embeddings/embeddings:0",
        "bert/tf_bert_for_masked_lm/bert/embeddings/LayerNorm/gamma:0",
        "bert/tf_bert_for_masked_lm/bert/encoder/layer_._1/attention/self/query/kernel:0",
        "mlm___cls/tf_bert_for_masked_lm/mlm___cls/predictions/transform/LayerNorm/beta:0",
        "mlm___cls/tf_bert_for_masked_lm/mlm___cls/predictions/bias:0",
        "mlm___cls/tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0",
    } <= tf_variables(state_dict()).keys()


def test_a_variable_of_two_layers_must_be_the_same_in_both(tmp_path: Path) -> None:
    folder = tf_folder(tmp_path / "in")
    repeated = "mlm___cls/tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0"
    with h5py.File(folder / TF_WEIGHTS_FILE, "a") as opened:
        opened[repeated][5, 7] += 1
    with pytest.raises(
        InputError, match=r"tf_model\.h5: tensor bert\.embeddings\.word_embeddings\.weight exists twice, with"
    ):
        hugging_face.read(folder)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x", "w") as opened:
        opened["layers/dense"] = np.ones((2, 2), np.float32)
    with (
        pytest.raises(InputError, match="x: tensor layers/dense: must be in a layer and a model"),
        ExitStack() as stack,
    ):
        open_tf_h5(tmp_path / "x", stack)


def test_weights_of_other_files_are_refused(tmp_path: Path) -> None:
    folder = tf_folder(tmp_path / "in")
    with h5py.File(folder / TF_WEIGHTS_FILE, "a") as opened:
        del opened["bert"]
        opened["bert"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "bert")
    with pytest.raises(InputError, match=r"tf_model\.h5: refused: bert is stored elsewhere"):
        hugging_face.read(folder)


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tf_folder(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        InputError, match=r"tf_model\.h5: Keras's weights need h5py: pip install 'mlm-jax\[convert\]'"
    ):
        hugging_face.read(folder)


def test_truncated_files_are_one_line(tmp_path: Path) -> None:
    folder = tf_folder(tmp_path / "in")
    file = folder / TF_WEIGHTS_FILE
    whole = file.read_bytes()
    for cut in (0, 1000, len(whole) // 2):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"tf_model\.h5: damaged or truncated: "):
            hugging_face.read(folder)
