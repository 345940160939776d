"""Hugging Face's folders: exact round trips, and errors."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlm_jax.errors import InputError
from mlm_jax.formats import hugging_face
from mlm_jax.formats.model_folder import flatten_params, read_model_folder, write_model_folder
from mlm_jax.store.format_registry import format_of, read_model
from tests.formats.folders import hugging_face_folder, state_dict, write_vocabulary

ARCHITECTURES = ("BertForMaskedLM", "BertModel", "BertForPreTraining", "BertForSequenceClassification")


def written(reading: Any, folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir()
    assert hugging_face.write(reading.model, folder) == len(load_file(folder / "model.safetensors"))
    return load_file(folder / "model.safetensors")


def assert_same_tensors(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_round_trip_is_exact(architecture: str, dtype: Any, tmp_path: Path) -> None:
    tensors = {name: array.astype(dtype) for name, array in state_dict(architecture).items()}
    folder = hugging_face_folder(tmp_path / "in", architecture, tensors=tensors)
    reading = hugging_face.read(folder)
    assert (len(reading.tensors), reading.dropped) == (len(tensors), {})
    assert_same_tensors(written(reading, tmp_path / "out"), tensors)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["architectures"] == [architecture]
    given = json.loads((folder / "config.json").read_text())
    assert {name: settings[name] for name in given} == given
    again = hugging_face.read(tmp_path / "out").model
    assert (again.config, again.labels) == (reading.model.config, reading.model.labels)


def test_every_weight_is_in_its_place(tmp_path: Path) -> None:
    """Checks one layer by hand: logits do not depend on the key's bias, and swapped layers might go unnoticed."""
    state = state_dict("BertForPreTraining")
    model = hugging_face.read(hugging_face_folder(tmp_path / "in", "BertForPreTraining")).model
    flat = flatten_params(model.params)
    layer = "bert.encoder.layer.1.attention"
    key = flat["encoder/layers/attention/key/bias"]
    assert key.shape == (2, 2, 32)
    np.testing.assert_array_equal(key[1].ravel(), state[f"{layer}.self.key.bias"])
    kernel = flat["encoder/layers/attention/query/kernel"][1]
    np.testing.assert_array_equal(kernel[5, 1, 7], state[f"{layer}.self.query.weight"][32 + 7, 5])
    output = flat["encoder/layers/attention/output/kernel"][1]
    np.testing.assert_array_equal(output[1, 7, 5], state[f"{layer}.output.dense.weight"][5, 32 + 7])
    np.testing.assert_array_equal(flat["next_sentence/kernel"], state["cls.seq_relationship.weight"].T)


def test_old_names_are_read(tmp_path: Path) -> None:
    plain = state_dict()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in plain.items()
    }
    assert sum("gamma" in name for name in old) == 6
    reading = hugging_face.read(hugging_face_folder(tmp_path / "old", tensors=old))
    assert_same_tensors(written(reading, tmp_path / "out"), plain)


def test_repeated_tensors_are_dropped_with_a_reason(tmp_path: Path) -> None:
    tensors = state_dict()
    extra = {
        "bert.embeddings.position_ids": np.arange(40)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }
    reading = hugging_face.read(hugging_face_folder(tmp_path / "in", tensors=tensors | extra))
    assert set(reading.dropped) == set(extra)
    assert all(reading.dropped.values())
    assert_same_tensors(written(reading, tmp_path / "out"), tensors)


@pytest.mark.parametrize(
    "extra",
    [
        {"bert.embeddings.position_ids": np.arange(1, 41)[None]},
        {"cls.predictions.decoder.weight": np.ones((211, 64), np.float32)},
        {"cls.predictions.decoder.bias": np.ones(211, np.float32)},
    ],
)
def test_tensors_that_should_be_equal_and_are_not_are_rejected(
    extra: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = hugging_face_folder(tmp_path / "in", tensors=state_dict() | extra)
    with pytest.raises(InputError, match=next(iter(extra)).rsplit(".", 1)[0]):
        hugging_face.read(folder)


def test_an_untied_decoder_keeps_its_own_table_and_bias(tmp_path: Path) -> None:
    random = np.random.RandomState(5)
    decoder = {
        "cls.predictions.decoder.weight": random.standard_normal((211, 64)).astype(np.float32),
        "cls.predictions.decoder.bias": random.standard_normal(211).astype(np.float32),
    }
    folder = hugging_face_folder(tmp_path / "in", tensors=state_dict() | decoder, tie_word_embeddings=False)
    reading = hugging_face.read(folder)
    assert not reading.model.config.tie_embeddings
    head = reading.model.params["head"]
    np.testing.assert_array_equal(head["output"], decoder["cls.predictions.decoder.weight"])
    np.testing.assert_array_equal(head["bias"], decoder["cls.predictions.decoder.bias"])
    assert "not read" in reading.dropped["cls.predictions.bias"]
    out = written(reading, tmp_path / "out")
    assert {name: out[name].tobytes() for name in decoder} == {n: a.tobytes() for n, a in decoder.items()}


def test_weights_in_shards(tmp_path: Path) -> None:
    folder, tensors = hugging_face_folder(tmp_path / "in"), state_dict()
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:20], names[20:]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    reading = hugging_face.read(folder)
    assert len(reading.files) == 2
    assert_same_tensors(written(reading, tmp_path / "out"), tensors)

    index.write_text(json.dumps({"weight_map": weight_map | {"of.none": file}}))
    with pytest.raises(InputError, match=rf"index\.json: tensor of\.none is not in {re.escape(file)}"):
        hugging_face.read(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {"of.none": "../in/config.json"}}))
    with pytest.raises(InputError, match="must be a file in the same folder"):
        hugging_face.read(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model-00002-of-00002.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors: no such file"):
        hugging_face.read(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere"}}))
    with pytest.raises(InputError, match="must be a file in the same folder"):
        hugging_face.read(folder)


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in state_dict().items() if key != name}


NORM = "bert.encoder.layer.1.output.LayerNorm.bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": without(NORM)}, f"1 missing tensor: {NORM}"),
        (
            {"tensors": state_dict() | {"bert.adapter.weight": np.ones(2)}},
            r"1 unknown tensor: bert\.adapter\.weight",
        ),
        (
            {"tensors": state_dict() | {NORM: np.ones(63)}},
            rf"{NORM} has shape \(63,\): the config requires \(64,\)",
        ),
        ({"vocab_size": 210}, r"table has 210 rows, its tokenizer 211 entries \(the last is 'w205'\)"),
        (
            {"vocab_size": 212},
            r"word_embeddings\.weight has shape \(211, 64\): the config requires \(212, 64\)",
        ),
        ({"model_type": "xlnet"}, "model_type 'xlnet' is not supported: must be one of 'bert', 'roberta'"),
        ({"architectures": "BertModel"}, "architectures = 'BertModel': must be a list of names"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_epsilon = '1e-12': must be a number"),
        ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\] is not supported"),
        ({"num_hidden_layers": 10_000_000}, "num_layers = 10000000: must be at most 1,000"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"num_attention_heads": 3}, r"config\.json: BertConfig.num_heads = 3"),
        ({"num_hidden_layers": 3}, r"missing tensors: bert\.encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"unknown tensors: bert\.encoder\.layer\.1"),
        ({"hidden_size": "64"}, r"config\.json: BertConfig.hidden_dim = '64'"),
    ],
)
def test_errors_name_what_is_not_supported(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in", **changes)
    with pytest.raises(InputError, match=message):
        hugging_face.read(folder)


def test_damaged_and_missing_files_are_rejected(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (4, 1000, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"model\.safetensors: damaged or truncated"):
            hugging_face.read(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights: expected .*\.h5$"):
        hugging_face.read(folder)
    (folder / "adapter_model.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match=r"no weights: expected .*; found adapter_model\.safetensors"):
        hugging_face.read(folder)
    weights.write_bytes(whole)
    write_vocabulary(folder, 212)
    with pytest.raises(InputError, match="table has 211 rows, its tokenizer 212 entries"):
        hugging_face.read(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(InputError, match="no tokenizer here"):
        hugging_face.read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        hugging_face.recognizes(folder)


def test_conventions_are_read(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in", hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-5)
    config = hugging_face.read(folder).model.config
    assert (config.activation, config.head_activation) == ("gelu_tanh", "gelu_tanh")
    assert (config.layer_norm_epsilon, config.head_layer_norm_epsilon) == (1e-5, 1e-5)
    assert not config.pooler
    assert hugging_face.expressible(config) == config


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in", hidden_dropout_prob=0, layer_norm_eps=1)
    config = hugging_face.read(folder).model.config
    assert (repr(config.dropout_rate), repr(config.head_layer_norm_epsilon)) == ("0.0", "1.0")


def test_the_architecture_is_read_without_weights(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in", "BertForPreTraining")
    expected = hugging_face.read(folder).model
    (folder / "model.safetensors").unlink()
    found = hugging_face.read_architecture(folder)
    assert found.config == expected.config
    assert found.tokenizer.fingerprint == expected.tokenizer.fingerprint


def test_every_number_is_in_one_parameter(tmp_path: Path) -> None:
    params = hugging_face.read(hugging_face_folder(tmp_path / "in")).model.params
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) == sum(array.size for array in state_dict().values())


def without_settings(folder: Path, *names: str) -> Path:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in names}))
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_configs_before_2021_lack_model_type_and_architectures(architecture: str, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in", architecture)
    expected = hugging_face.read(folder).model
    without_settings(folder, "model_type", "architectures")
    assert hugging_face.recognizes(folder)
    found = hugging_face.read(folder).model
    assert (found.config, found.labels, set(found.params)) == (
        expected.config,
        expected.labels,
        set(expected.params),
    )


def test_a_google_config_next_to_converted_weights_is_read_with_exact_gelu(tmp_path: Path) -> None:
    folder = without_settings(hugging_face_folder(tmp_path / "in"), "model_type", "architectures")
    (folder / "config.json").rename(folder / "bert_config.json")
    assert format_of(folder).NAME == "hugging_face"
    assert hugging_face.read(folder).model.config.activation == "gelu"
    (folder / "bert_model.ckpt.index").touch()
    (folder / "model.safetensors").unlink()
    assert format_of(folder).NAME == "google_tf"


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertModel"])
@pytest.mark.parametrize("wrapper", ["module.", "model.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(architecture: str, wrapper: str, tmp_path: Path) -> None:
    plain = state_dict(architecture)
    wrapped = {wrapper + name: array for name, array in plain.items()}
    reading = hugging_face.read(hugging_face_folder(tmp_path / "in", architecture, tensors=wrapped))
    assert_same_tensors(written(reading, tmp_path / "out"), plain)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        (["roberta."], r"tensors named roberta\.embeddings\.word_embeddings\.weight, …: not BERT's"),
        (["bert.", "other.bert."], r"2 tensors named .* \(bert\., other\.bert\.\): must be one"),
        ([], "0 tensors named embeddings"),
    ],
)
def test_other_encoders_are_rejected(prefixes: list[str], message: str, tmp_path: Path) -> None:
    bare = state_dict("BertModel") if prefixes else {"dense.weight": np.ones((2, 2), np.float32)}
    tensors = {prefix + name: array for prefix in prefixes or [""] for name, array in bare.items()}
    folder = without_settings(
        hugging_face_folder(tmp_path / "in", tensors=tensors), "model_type", "architectures"
    )
    with pytest.raises(InputError, match=message):
        hugging_face.read(folder)


def test_another_class_without_model_type_is_rejected(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in", architectures=["XLNetModel"])
    with pytest.raises(InputError, match="architecture XLNetModel is not supported"):
        hugging_face.read(without_settings(folder, "model_type"))


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("BertForMultipleChoice", "classifier"),
        ("BertWithACrf", "crf"),
    ],
)
def test_other_heads_are_left_out_and_named(architecture: str, head: str, tmp_path: Path) -> None:
    encoder = {
        name: array for name, array in state_dict("BertForPreTraining").items() if name.startswith("bert.")
    }
    extra = {f"{head}.weight": np.ones((5, 64), np.float32), f"{head}.bias": np.ones(5, np.float32)}
    reading = hugging_face.read(
        hugging_face_folder(tmp_path / "in", architectures=[architecture], tensors=encoder | extra)
    )
    assert set(reading.model.params) == {"encoder"}
    assert reading.notes == [f"left out: {head}.bias, {head}.weight ({architecture})"]
    assert not reading.dropped


@pytest.mark.parametrize(
    ("architecture", "head", "part", "labels"),
    [
        ("BertForQuestionAnswering", "qa_outputs", "question_answering", None),
        ("BertForTokenClassification", "classifier", "token_classifier", ("O", "B-PER")),
    ],
)
def test_heads_for_tokens_are_kept(
    architecture: str, head: str, part: str, labels: tuple[str, ...] | None, tmp_path: Path
) -> None:
    encoder = {
        name: array for name, array in state_dict("BertForPreTraining").items() if name.startswith("bert.")
    }
    weight = np.arange(128, dtype=np.float32).reshape(2, 64)
    extra = {f"{head}.weight": weight, f"{head}.bias": np.ones(2, np.float32)}
    named = {"id2label": {"0": "O", "1": "B-PER"}}
    model = hugging_face.read(
        hugging_face_folder(tmp_path / "in", architectures=[architecture], tensors=encoder | extra, **named)
    ).model
    assert set(model.params) == {"encoder", part}
    assert model.labels == labels
    np.testing.assert_array_equal(model.params[part]["kernel"], weight.T)
    (tmp_path / "own").mkdir()
    write_model_folder(tmp_path / "own", model)
    again = read_model_folder(tmp_path / "own")
    np.testing.assert_array_equal(again.params[part]["kernel"], weight.T)
    assert hugging_face.class_of(again) == architecture


@pytest.mark.parametrize(
    ("settings", "labels", "noted"),
    [
        ({"id2label": None}, ("LABEL_0", "LABEL_1", "LABEL_2"), False),
        ({"id2label": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2"), False),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2"), True),
        ({"id2label": {"2": "c", "0": "a", "1": "b"}, "num_labels": 2}, ("a", "b", "c"), False),
    ],
)
def test_the_classifier_decides_how_many_classes_there_are(
    settings: dict[str, Any], labels: tuple[str, ...], noted: bool, tmp_path: Path
) -> None:
    reading = hugging_face.read(hugging_face_folder(tmp_path / "in", ARCHITECTURES[3], **settings))
    assert reading.model.labels == labels
    assert any("id2label names 2 classes, the classifier has 3" in note for note in reading.notes) == noted


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"1": "a", "2": "b", "3": "c"}, "id2label has the keys 1, 2, 3: must be 0 to 2"),
        (["a", "b", "c"], r"id2label = .*: must map each class to its name"),
        ({"0": "a", "1": 2, "2": "c"}, r"id2label = .*: must map each class to its name"),
    ],
)
def test_names_of_other_classes_are_rejected(names: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        hugging_face.read(hugging_face_folder(tmp_path / "in", ARCHITECTURES[3], id2label=names))


def test_rows_beyond_the_vocabulary_are_kept_and_noted(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in")
    write_vocabulary(folder, 200)
    reading = hugging_face.read(folder)
    assert reading.notes == ["11 of the 211 rows of the embedding table have no entry in the tokenizer; kept"]
    assert (reading.model.config.vocabulary_size, reading.model.tokenizer.vocabulary_size) == (211, 200)
    assert_same_tensors(written(reading, tmp_path / "out"), state_dict())
    assert hugging_face.read(tmp_path / "out").model.tokenizer.vocabulary_size == 200


@pytest.mark.parametrize("shard", ["/etc/passwd", "../in/x.safetensors", "a/b", "..", "", 5, "a\0b"])
def test_an_index_names_only_files_of_its_folder(shard: Any, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "in")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match=r"index\.json: names .*: must be a file in the same folder"):
        hugging_face.read(folder)


def test_classes_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    names = {"0": "x", "1": "y", "2": "x"}
    reading = hugging_face.read(hugging_face_folder(tmp_path / "in", ARCHITECTURES[3], id2label=names))
    assert reading.model.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert any("id2label gives several classes the same name" in note for note in reading.notes)


@pytest.mark.parametrize(("rate", "noted"), [(None, False), (0.1, False), (0.3, True), (0, True)])
def test_a_dropout_of_the_classifier_alone_is_named(rate: float | None, noted: bool, tmp_path: Path) -> None:
    for name in ("classifier_dropout", "classifier_dropout_prob"):
        settings = {"hidden_dropout_prob": 0.1, name: rate}
        folder = hugging_face_folder(tmp_path / name, ARCHITECTURES[3], **settings)
        note = (
            f"left out: {name} {rate} (the dropout rate of the encoder, 0.1, is used in the classifier, too)"
        )
        assert (note in hugging_face.read(folder).notes) is noted


def test_a_classifier_without_its_class_is_one_of_texts_only_with_a_pooler(tmp_path: Path) -> None:
    texts = hugging_face_folder(tmp_path / "texts", ARCHITECTURES[3])
    reading = hugging_face.read(without_settings(texts, "architectures"))
    assert reading.model.labels == ("sad", "neutral", "glad")
    assert any(
        "classifier.* is read as that of BertForSequenceClassification" in note for note in reading.notes
    )
    tokens = {name: array for name, array in state_dict(ARCHITECTURES[3]).items() if ".pooler." not in name}
    folder = hugging_face_folder(tmp_path / "tokens", ARCHITECTURES[3], tensors=tokens)
    with pytest.raises(InputError, match="has a classifier, but not the pooler that it is applied to"):
        hugging_face.read(folder)
    reading = hugging_face.read(without_settings(folder, "architectures"))
    assert set(reading.model.params) == {"encoder"}
    assert reading.notes == ["left out: classifier.bias, classifier.weight (an unknown class)"]


def test_an_adapter_is_named(tmp_path: Path) -> None:
    """transformers would apply it, if peft is installed."""
    folder = hugging_face_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "left out: the adapter of PEFT" in " ".join(hugging_face.read(folder).notes)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"an adapter of PEFT .*: must be merged into its model"):
        read_model(folder)


def test_a_folder_of_the_hubs_cache_is_explained(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    hugging_face_folder(tmp_path / "snapshots" / "abc")
    with pytest.raises(InputError, match="snapshots/abc/ in it has one"):
        read_model(tmp_path)


def test_a_long_entry_is_shortened_in_messages(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "model")
    with (folder / "vocab.txt").open("a") as file:
        file.write("x" * 10_000 + "\n")
    with pytest.raises(InputError, match="must be at least as many") as error:
        hugging_face.read(folder)
    assert len(str(error.value)) < 1000
