"""Conversions compared with TensorFlow and Google's own modeling code."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

tf = pytest.importorskip("tensorflow")
pytest.importorskip("bert")

from mlm_jax.errors import InputError
from mlm_jax.files.checksums import CHECKSUMS_FILE
from mlm_jax.formats import google_tf, hugging_face
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.loading import load_model
from mlm_jax.store.reference_outputs import Reference, fixed_batch, largest_difference, our_outputs
from tests.formats.folders import hugging_face_folder, state_dict, write_vocabulary
from tests.formats.test_hugging_face import assert_same_tensors
from tests.run_small import run_python
from tests.store.test_conversion import modes_of_converted_files

pytestmark = pytest.mark.peers


def variables(folder: Path) -> dict[str, np.ndarray]:
    """Returns what TensorFlow reads from the checkpoint."""
    reader = tf.train.load_checkpoint(str(folder / "bert_model.ckpt"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def published(folder: Path, architecture: str, tmp_path: Path, **settings: object) -> Path:
    source = hugging_face_folder(tmp_path / f"{folder.name}_hf", architecture, **settings)
    convert(source, folder, "google_tf", Request(backbone_only=architecture == "BertModel"))
    return folder


ARCHITECTURES = ("BertForMaskedLM", "BertForPreTraining", "BertModel", "BertForSequenceClassification")
# Each takes TensorFlow a minute: two at every change, all before a release.
EVERY_CHANGE = {("BertForMaskedLM", "gelu_new"), ("BertForSequenceClassification", "gelu")}


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        pytest.param(*case, marks=() if case in EVERY_CHANGE else pytest.mark.release)
        for case in product(ARCHITECTURES, ("gelu_new", "gelu"))
    ],
)
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


def written(folder: Path, architecture: str, tmp_path: Path) -> Path:
    """Writes a checkpoint without comparing it with Google's code."""
    model = hugging_face.read(hugging_face_folder(tmp_path / f"{folder.name}_hf", architecture)).model
    folder.mkdir()
    google_tf.write(replace(model, config=google_tf.expressible(model.config)), folder)
    return folder


def save(folder: Path, tensors: dict[str, np.ndarray], name: str = "bert_model.ckpt") -> None:
    """Replaces the checkpoint of that name, or adds one."""
    for file in folder.glob(f"{name}.*"):
        file.unlink()
    tf.raw_ops.SaveV2(
        prefix=str(folder / name),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(array) for array in tensors.values()],
    )


@pytest.mark.parametrize(
    "suffixes", [("adam_m", "adam_v"), ("lamb_m", "lamb_v"), ("LAMB", "LAMB_1"), ("Momentum",)]
)
def test_variables_of_the_training_are_dropped(suffixes: tuple[str, ...], tmp_path: Path) -> None:
    source = written(tmp_path / "source", "BertForPreTraining", tmp_path)
    found = variables(source)
    extra = {f"{name}/{end}": np.zeros_like(array) for name, array in found.items() for end in suffixes}
    extra |= {"global_step": np.int64(7), "loss_scale": np.float32(1), "good_steps": np.int32(3)}
    extra["cls/seq_relationship/current_loss_scale"] = np.float32(1)
    save(source, found | extra)
    reading = google_tf.read(source)
    assert set(reading.dropped) == set(extra)
    assert reading.notes == []
    assert len(reading.tensors) == len(found) + len(extra)


def test_other_heads_are_left_out_and_other_variables_of_the_encoder_are_not(tmp_path: Path) -> None:
    source = written(tmp_path / "source", "BertForPreTraining", tmp_path)
    found = variables(source)
    encoder = {name: array for name, array in found.items() if name.startswith("bert/")}
    squad = {
        "cls/squad/output_weights": np.zeros((2, 64), np.float32),
        "cls/squad/output_bias": np.zeros(2, np.float32),
    }
    save(source, encoder | squad)
    reading = google_tf.read(source)
    assert set(reading.model.params) == {"encoder"}
    assert reading.notes == [f"left out: {', '.join(sorted(squad))} (of another head)"]
    save(source, found | {"bert/adapter/kernel": np.ones(3, np.float32)})
    with pytest.raises(InputError, match="1 unknown tensor: bert/adapter/kernel"):
        google_tf.read(source)
    save(source, {name: array for name, array in found.items() if name != "bert/pooler/dense/bias"})
    with pytest.raises(InputError, match="1 missing tensor: bert/pooler/dense/bias"):
        google_tf.read(source)
    save(source, found | {"bert/pooler/dense/bias": np.full(64, np.nan, np.float32)})
    with pytest.raises(InputError, match="tensor bert/pooler/dense/bias has 64 values that are not finite"):
        google_tf.read(source)


@pytest.mark.parametrize(
    "newest", ["model.ckpt-200", "/elsewhere/of/then/model.ckpt-200", r"C:\\then\\model.ckpt-200"]
)
def test_the_newest_of_several_steps_is_read(newest: str, tmp_path: Path) -> None:
    source = written(tmp_path / "source", "BertForMaskedLM", tmp_path)
    found = variables(source)
    for file in source.glob("bert_model.ckpt.*"):
        file.unlink()
    for step in (100, 200):
        save(
            source,
            found | {"cls/predictions/output_bias": np.full(211, step, np.float32)},
            f"model.ckpt-{step}",
        )
    with pytest.raises(InputError, match=r"model\.ckpt-100\.index, model\.ckpt-200\.index: must contain one"):
        google_tf.read(source)
    state = f'model_checkpoint_path: "{newest}"\nall_model_checkpoint_paths: "model.ckpt-100"\n'
    (source / "checkpoint").write_text(state)
    reading = google_tf.read(source)
    assert reading.model.params["head"]["bias"][0] == 200
    assert {path.name.split(".")[1] for path in reading.files} == {"ckpt-200"}
    (source / "checkpoint").write_text(state.replace("ckpt-200", "ckpt-300"))
    with pytest.raises(InputError, match="a file checkpoint that names the newest"):
        google_tf.read(source)
    for file in source.glob("model.ckpt-200.*"):
        file.unlink()
    assert google_tf.read(source).notes == [
        "read: model.ckpt-100, the only checkpoint here; the newest in the file checkpoint is model.ckpt-300"
    ]


def test_rows_beyond_the_vocabulary_and_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))
    source = hugging_face_folder(tmp_path / "source")
    write_vocabulary(source, 208)
    certificate = convert(source, tmp_path / "google", "google_tf")
    assert certificate["target"]["vocabulary"] == {"rows": 211, "entries": 208}
    convert(tmp_path / "google", tmp_path / "back", "hugging_face")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), state_dict())
    data = next((tmp_path / "google").glob("*.data-*"))
    content = bytearray(data.read_bytes())
    content[1234] ^= 4
    data.write_bytes(content)
    with pytest.raises(InputError, match=r"bert_model\.ckpt\.data-00000-of-00001: damaged or edited"):
        load_model(tmp_path / "google")


def test_errors_name_what_is_not_supported(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM", tmp_path)
    # Every change would be reported as a different checksum.
    (source / CHECKSUMS_FILE).unlink()
    config = json.loads((source / "bert_config.json").read_text())
    for change, message in (
        ({"vocab_size": 210}, "table has 210 rows, its tokenizer 211 entries"),
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


def test_the_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    assert modes_of_converted_files(tmp_path, "google_tf") == {0o640}


def test_lowercasing_is_read_from_the_tokenizer_config(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "BertForMaskedLM", tmp_path)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    tokenizer = google_tf.read(source).model.tokenizer
    assert tokenizer.encode("W5").tolist() == [tokenizer.unknown_token_id]
    assert tokenizer.encode("w5").tolist() != [tokenizer.unknown_token_id]
