"""Conversions compared with TensorFlow and Google's own modeling code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("bert")

from mlm_jax.errors import InputError
from mlm_jax.formats import google_tf
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.reference_outputs import fixed_batch, largest_difference, our_outputs
from tests.formats.folders import hugging_face_folder, state_dict
from tests.run_small import run_python

pytestmark = pytest.mark.peers


def variables(folder: Path) -> dict[str, np.ndarray]:
    """Returns what TensorFlow reads from the checkpoint."""
    reader = tf.train.load_checkpoint(str(folder / "bert_model.ckpt"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def published(folder: Path, architecture: str, tmp_path: Path, **settings: object) -> Path:
    source = hugging_face_folder(tmp_path / f"{folder.name}_hf", architecture, **settings)
    convert(source, folder, "google_tf", Request(backbone_only=architecture == "BertModel"))
    return folder


@pytest.mark.parametrize(
    "architecture", ["BertForMaskedLM", "BertForPreTraining", "BertModel", "BertForSequenceClassification"]
)
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_googles_code_has_the_same_outputs(architecture: str, activation: str, tmp_path: Path) -> None:
    source = published(tmp_path / "source", architecture, tmp_path, hidden_act=activation)
    request = Request(backbone_only=architecture == "BertModel")
    there = convert(source, tmp_path / "ours", "mlm_jax", request)
    back = convert(tmp_path / "ours", tmp_path / "back", "google_tf", request)
    for comparison in (there["comparisons"]["source"], back["comparisons"]["target"]):
        assert comparison["library"].startswith("bert-tensorflow ")
        assert comparison["max_difference"] <= 1e-5
        assert comparison["largest_output"] > 0.5
    first, last = variables(source), variables(tmp_path / "back")
    assert {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in last.items()
    }
    assert google_tf.read(source).model.config.activation == (
        "gelu_tanh" if activation == "gelu_new" else "gelu"
    )


# Runs in a child process, because Google's code turns off eager execution, which writing checkpoints needs.
RUN_GOOGLES_CODE = """
import sys
from pathlib import Path
import numpy
from mlm_jax.formats.run_google_bert import run_google_bert
folder, batch, outputs = map(Path, sys.argv[1:])
files = folder / "bert_config.json", folder / "bert_model.ckpt"
numpy.save(outputs, run_google_bert(*files, dict(numpy.load(batch)), gelu_by_erf=False))
"""


def test_googles_gelu_is_tanh(tmp_path: Path) -> None:
    """Runs the package's own GELU."""
    source = published(tmp_path / "source", "BertForMaskedLM", tmp_path, hidden_act="gelu_new")
    assert json.loads((source / "bert_config.json").read_text())["gelu"] == "tanh"
    model = google_tf.read(source).model
    batch = fixed_batch(model.config)
    np.savez(tmp_path / "batch.npz", **batch)
    ended = run_python(RUN_GOOGLES_CODE, source, tmp_path / "batch.npz", tmp_path / "theirs.npy")
    assert ended.returncode == 0, ended.stderr
    theirs = np.load(tmp_path / "theirs.npy")
    assert largest_difference(our_outputs(model, batch), theirs, batch) <= 1e-5


def test_every_variable_has_googles_name_and_shape(tmp_path: Path) -> None:
    found = variables(published(tmp_path / "source", "BertForPreTraining", tmp_path))
    state = state_dict("BertForPreTraining")
    layer = "bert/encoder/layer_1"
    torch_layer = "bert.encoder.layer.1"
    assert len(found) == len(state)
    expected = {
        "bert/embeddings/word_embeddings": state["bert.embeddings.word_embeddings.weight"],
        f"{layer}/attention/self/key/kernel": state[f"{torch_layer}.attention.self.key.weight"].T,
        f"{layer}/attention/self/key/bias": state[f"{torch_layer}.attention.self.key.bias"],
        f"{layer}/attention/output/dense/kernel": state[f"{torch_layer}.attention.output.dense.weight"].T,
        f"{layer}/output/LayerNorm/gamma": state[f"{torch_layer}.output.LayerNorm.weight"],
        "cls/predictions/output_bias": state["cls.predictions.bias"],
        "cls/seq_relationship/output_weights": state["cls.seq_relationship.weight"],
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_only_the_optimizer_state_of_a_checkpoint_is_dropped(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForPreTraining", tmp_path)
    found = variables(source)
    extra = {f"{name}/adam_{kind}": np.zeros_like(array) for name, array in found.items() for kind in "mv"}
    extra["global_step"] = np.int64(7)

    def save(tensors: dict[str, np.ndarray]) -> None:
        for file in source.glob("bert_model.ckpt*"):
            file.unlink()
        tf.raw_ops.SaveV2(
            prefix=str(source / "bert_model.ckpt"),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=[tf.constant(array) for array in tensors.values()],
        )

    save(found | extra)
    reading = google_tf.read(source)
    assert set(reading.dropped) == set(extra)
    assert reading.num_tensors == len(found) + len(extra)
    save(found | {"adapter/kernel": np.ones(3, np.float32)})
    with pytest.raises(InputError, match="1 unknown tensor: adapter/kernel"):
        google_tf.read(source)
    save({name: array for name, array in found.items() if name != "bert/pooler/dense/bias"})
    with pytest.raises(InputError, match="1 missing tensor: bert/pooler/dense/bias"):
        google_tf.read(source)


def test_errors_name_what_is_not_supported(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM", tmp_path)
    config = json.loads((source / "bert_config.json").read_text())
    for change, message in (
        ({"vocab_size": 210}, "210 vocabulary entries, its tokenizer 211"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"num_hidden_layers": 3}, "missing tensors: bert/encoder/layer_2"),
        ({"type_vocab_size": 3}, r"token_type_embeddings has shape \(2, 64\)"),
    ):
        (source / "bert_config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            google_tf.read(source)
    (source / "bert_config.json").write_text(json.dumps(config))
    data = next(source.glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged or truncated"):
        convert(source, tmp_path / "out", "mlm_jax")
    shutil.copy(next(source.glob("*.index")), source / "other.index")
    with pytest.raises(
        InputError, match=r"bert_model\.ckpt\.index, other\.index: must contain one checkpoint"
    ):
        google_tf.read(source)
    for file in source.glob("*.index"):
        file.unlink()
    with pytest.raises(InputError, match="none: must contain one checkpoint"):
        google_tf.read(source)
    assert not (tmp_path / "out").exists()


def test_lowercasing_is_read_from_the_tokenizer_config(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM", tmp_path)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    tokenizer = google_tf.read(source).model.tokenizer
    assert tokenizer.encode("W5").tolist() == [tokenizer.unknown_token_id]
    assert tokenizer.encode("w5").tolist() != [tokenizer.unknown_token_id]
