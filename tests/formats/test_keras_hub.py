"""KerasHub's presets, with h5py: exact round trips, and errors. tests/peers compares with KerasHub itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest

from mlm_jax.errors import InputError
from mlm_jax.formats import keras_hub
from mlm_jax.formats.model_folder import StoredModel, read_model_folder, write_model_folder
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.reference_outputs import Reference
from tests.formats.folders import hugging_face_folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredModel:
    """A model with KerasHub's conventions."""
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))
    convert(hugging_face_folder(tmp_path / "hf", "BertForPreTraining"), tmp_path / "start", "mlm_jax")
    found = read_model_folder(tmp_path / "start")
    params = {part: found.params[part] for part in ("encoder", "head")}
    return replace(found, config=keras_hub.expressible(found.config), params=params)


def written(model: StoredModel, folder: Path) -> Path:
    folder.mkdir()
    count = keras_hub.write(model, folder)
    assert count == len(tensors(folder))
    return folder


def tensors(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in sorted(folder.glob("*.h5")):
        with h5py.File(file) as opened:
            opened.visititems(
                lambda name, item, file=file: (
                    found.update({f"{file.name}/{name}": item[()].tobytes()})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return found


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("parts", [("encoder", "head"), ("encoder",)])
def test_round_trip_is_exact(model: StoredModel, dtype: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    params = {part: jax.tree.map(lambda leaf: leaf.astype(dtype), model.params[part]) for part in parts}
    first = written(replace(model, params=params), tmp_path / "first")
    reading = keras_hub.read(first)
    assert reading.model.config == replace(model.config, initializer_stddev=0.02)
    assert len(reading.tensors) == len(tensors(first))
    assert reading.dropped == {}
    for found, given in zip(jax.tree.leaves(reading.model.params), jax.tree.leaves(params), strict=True):
        assert found.dtype == given.dtype
        assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(given).tobytes()
    assert reading.model.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert tensors(written(reading.model, tmp_path / "second")) == tensors(first)


def test_conventions_of_keras_hub(model: StoredModel) -> None:
    """The conventions are constants in KerasHub's code; tests/peers checks them there."""
    config = model.config
    assert (config.activation, config.layer_norm_epsilon) == ("gelu_tanh", 1e-12)
    assert (config.head_activation, config.head_layer_norm_epsilon) == ("gelu", 1e-5)
    # KerasHub has one dropout rate for everything.
    rates = replace(config, dropout_rate=0.2, attention_dropout_rate=0.0)
    assert keras_hub.expressible(rates).attention_dropout_rate == 0.2


def test_layers_are_numbered_from_the_second(model: StoredModel, tmp_path: Path) -> None:
    names = tensors(written(model, tmp_path / "out"))
    layers = {name.split("/")[2] for name in names if "transformer_encoder" in name}
    assert layers == {"transformer_encoder", "transformer_encoder_1"}
    with h5py.File(tmp_path / "out" / "model.weights.h5") as opened:
        query = opened["layers/transformer_encoder_1/_self_attention_layer/query_dense/vars/0"][()]
    np.testing.assert_array_equal(query, model.params["encoder"]["layers"]["attention"]["query"]["kernel"][1])


def test_state_of_the_optimizer_is_dropped_with_a_reason(model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    with h5py.File(folder / "task.weights.h5", "a") as opened:
        opened["optimizer/vars/0"] = 3
    assert keras_hub.read(folder).dropped == {"optimizer/vars/0": "state of Keras's optimizer"}


def test_parts_that_keras_hub_lacks_or_needs(model: StoredModel, tmp_path: Path) -> None:
    folder = tmp_path / "with_nsp"
    folder.mkdir()
    nsp = {"kernel": np.ones((64, 2), np.float32), "bias": np.ones(2, np.float32)}
    write_model_folder(folder, replace(model, params=model.params | {"next_sentence": nsp}))
    certificate = convert(folder, tmp_path / "out", "keras_hub")
    assert certificate["changes"] == ["left out: next_sentence (KerasHub has no next-sentence head)"]
    encoder = {key: leaf for key, leaf in model.params["encoder"].items() if key != "pooler"}
    bare = replace(
        model, config=replace(model.config, pooler=False), params=model.params | {"encoder": encoder}
    )
    (tmp_path / "bare").mkdir()
    write_model_folder(tmp_path / "bare", bare)
    with pytest.raises(InputError, match="no pooler, which keras_hub needs: --allow-random-pooler"):
        convert(tmp_path / "bare", tmp_path / "out2", "keras_hub")
    certificate = convert(
        tmp_path / "bare", tmp_path / "out3", "keras_hub", Request(allow_random_pooler=True)
    )
    assert certificate["changes"] == ["RANDOM: the pooler has random weights and must be trained before use"]
    assert certificate["comparisons"]["change"]["max_difference"] == 0.0
    params = keras_hub.read(tmp_path / "out3").model.params
    # A normal distribution truncated at two standard deviations has 0.88 of the standard deviation.
    assert np.std(params["encoder"].pop("pooler")["kernel"]) == pytest.approx(0.88 * 0.02, rel=0.1)
    jax.tree.map(np.testing.assert_array_equal, params, bare.params)
    with pytest.raises(InputError, match=r"activation 'gelu' becomes 'gelu_tanh'.*--change-conventions"):
        convert(tmp_path / "hf", tmp_path / "out2", "keras_hub")
    assert not (tmp_path / "out2").exists()
    convert(tmp_path / "hf", tmp_path / "out2", "keras_hub", Request(change_conventions=True))


def change(folder: Path, file: str, **settings: Any) -> None:
    content = json.loads((folder / file).read_text())
    content["config"] |= settings
    content["registered_name"] = settings.pop("registered_name", content["registered_name"])
    (folder / file).write_text(json.dumps(content))


def test_errors_name_what_is_not_supported(model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    with h5py.File(folder / "model.weights.h5", "a") as opened:
        opened["layers/adapter/vars/0"] = np.ones(2)
    with pytest.raises(InputError, match="1 unknown tensor: layers/adapter/vars/0"):
        keras_hub.read(folder)
    with h5py.File(folder / "model.weights.h5", "a") as opened:
        del opened["layers/adapter"], opened["layers/dense/vars/1"]
    with pytest.raises(InputError, match="1 missing tensor: layers/dense/vars/1"):
        keras_hub.read(folder)
    with h5py.File(folder / "model.weights.h5", "a") as opened:
        opened["layers/dense/vars/1"] = np.ones(63, np.float32)
    with pytest.raises(InputError, match=r"layers/dense/vars/1 has shape \(63,\)"):
        keras_hub.read(folder)
    change(folder, "config.json", vocabulary_size=210)
    with pytest.raises(InputError, match="table has 210 rows, its tokenizer 211 entries"):
        keras_hub.read(folder)
    change(folder, "config.json", vocabulary_size=211, registered_name="keras_hub>RobertaBackbone")
    with pytest.raises(InputError, match="RobertaBackbone is not supported"):
        keras_hub.read(folder)


def test_quantized_presets_are_named(model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    of_layer = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8", "source_name": None}}
    for dtype in (
        "int8_from_float32",
        {"class_name": "DTypePolicyMap", "config": {"policy_map": {"token_embedding": of_layer}}},
    ):
        config["config"]["dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            InputError, match=r"config\.json: its weights are quantized, which is not supported"
        ):
            keras_hub.read(folder)


def test_a_truncated_file_is_rejected(model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    weights = folder / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(InputError, match=r"model\.weights\.h5: damaged or truncated"):
        keras_hub.read(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.weights\.h5: no such file$"):
        keras_hub.read(folder)
    (folder / "model.weights.json").write_text("{}")
    with pytest.raises(InputError, match=r"no such file; KerasHub's shards are not supported"):
        keras_hub.read(folder)


def test_a_classifier_round_trips(model: StoredModel, tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    classifier = {
        "kernel": random.standard_normal((64, 3)).astype(np.float32),
        "bias": random.standard_normal(3).astype(np.float32),
    }
    params = {"encoder": model.params["encoder"], "classifier": classifier}
    labels = ("LABEL_0", "LABEL_1", "LABEL_2")
    folder = written(replace(model, params=params, labels=labels), tmp_path / "out")
    reading = keras_hub.read(folder)
    assert reading.model.labels == labels
    jax.tree.map(np.testing.assert_array_equal, reading.model.params, params)
    change(folder, "task.json", activation="softmax", registered_name="keras_nlp>BertClassifier")
    assert set(keras_hub.read(folder).model.params) == {"encoder", "classifier"}
    assert keras_hub.read(folder).model.problem_type is None
    several = replace(model, params=params, labels=labels, problem_type="multi_label_classification")
    assert keras_hub.read(written(several, tmp_path / "several")).model.problem_type == several.problem_type
    change(folder, "task.json", activation={"class_name": "mine"})
    assert set(keras_hub.read(folder).model.params) == {"encoder"}
    change(folder, "task.json", activation="relu")
    reading = keras_hub.read(folder)
    assert set(reading.model.params) == {"encoder"}
    assert reading.notes == [
        "left out: layers/dense/vars/0, layers/dense/vars/1 (a classifier with the activation 'relu')"
    ]


@pytest.mark.parametrize(
    "task", ["keras_hub>BertTextEmbedder", "keras_hub>BertTextClassifier", "mine>Tagger"]
)
def test_the_backbone_of_another_task_is_read(task: str, model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    change(folder, "task.json", registered_name=task)
    reading = keras_hub.read(folder)
    assert set(reading.model.params) == {"encoder"}
    (note,) = reading.notes
    assert note.startswith("left out: layers/masked_lm_head/_intermediate_dense/vars/0")
    assert task.split(">")[1] in note


QUERY = "layers/transformer_encoder/_self_attention_layer/query_dense/vars/0"


@pytest.mark.parametrize("kind", ["external storage", "virtual", "external link", "soft link"])
def test_weights_of_other_files_are_refused(kind: str, model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    (tmp_path / "secret").write_bytes(bytes(64 * 64 * 4))
    with h5py.File(folder / "model.weights.h5", "a") as opened:
        shape = opened[QUERY].shape
        del opened[QUERY]
        match kind:
            case "external storage":
                opened.create_dataset(QUERY, shape, np.float32, external=str(tmp_path / "secret"))
            case "virtual":
                layout = h5py.VirtualLayout(shape, np.float32)
                layout[:] = h5py.VirtualSource(str(folder / "task.weights.h5"), "x", shape)
                opened.create_virtual_dataset(QUERY, layout)
            case "external link":
                opened[QUERY] = h5py.ExternalLink(str(folder / "task.weights.h5"), "x")
            case "soft link":
                opened[QUERY] = h5py.SoftLink("/layers/dense/vars/0")
    with pytest.raises(InputError, match=rf"model\.weights\.h5: refused: {QUERY} is stored elsewhere"):
        keras_hub.read(folder)


def test_a_small_file_of_huge_tensors_is_refused(model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    with h5py.File(folder / "model.weights.h5", "a") as opened:
        del opened[QUERY]
        opened.create_dataset(QUERY, (1 << 16, 1 << 16), np.float32, compression="gzip", chunks=(256, 256))
    with pytest.raises(InputError, match=r"would expand to 4,29.* numbers"):
        keras_hub.read(folder)


def test_groups_nested_without_end_are_refused(model: StoredModel, tmp_path: Path) -> None:
    """Visiting 3,000 of them takes minutes."""
    folder = written(model, tmp_path / "out")
    with h5py.File(folder / "model.weights.h5", "a") as opened:
        group = opened
        for _ in range(200):
            group = group.create_group("g")
    with pytest.raises(InputError, match=r"model\.weights\.h5: refused: groups nested more than 50 deep"):
        keras_hub.read(folder)


def test_rows_beyond_the_vocabulary_are_noted(model: StoredModel, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "out")
    vocabulary = folder / "assets" / "tokenizer" / "vocabulary.txt"
    vocabulary.write_text("".join(vocabulary.read_text().splitlines(keepends=True)[:208]))
    assert keras_hub.read(folder).notes == [
        "3 of the 211 rows of the embedding table have no entry in the tokenizer; kept"
    ]
